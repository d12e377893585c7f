// Weights that do not change: packed once, in the layer's dtype or in fewer bits, for inference on
// the CPU. A call has them where its layout ends in their format. A prepacked matrix is bytes
// behind a header that says how to read them; the other weights are in the dtype of the state.
#pragma once
#include <cstring>
#include <string>
#include <string_view>

#include "cpu/gemm/matrix.h"
#include "cpu/kernels.h"

namespace fastlstm {

// W [rows,K], of int8 with the scale [rows] of each row. by_gates: of W_ih and W_hh, whose
// panels hold the gates of a unit together.
at::Tensor pack_weight(const at::Tensor& weight, const std::optional<at::Tensor>& scale,
                       const std::string& format, bool in_gate_order);
// The weight that was packed, and the scales.
std::tuple<at::Tensor, std::optional<at::Tensor>> unpack_weight(const at::Tensor& prepacked);

// The first bytes of W [rows,columns]. Panels are those of `lanes` and `vectors`, the widest of the
// processor that packed them; their columns are in the order of gates_of, or of the rows of W.
struct PrepackedHeader {
  char magic[8], format[16];
  int64_t lanes, vectors, rows, columns, in_gate_order;

  // Throws for a tensor that has no header.
  static PrepackedHeader of(const at::Tensor& prepacked);
  std::pair<int64_t, int64_t> shape() const { return {rows, columns}; }
  std::string panels() const {
    return std::string(format) + " in panels of " + std::to_string(lanes) + "x" +
           std::to_string(vectors);
  }
};
constexpr char kPrepackedMagic[8] = {'f', 'a', 's', 't', 'l', 's', 't', '1'};
constexpr int64_t kHeaderBytes = sizeof(PrepackedHeader);
static_assert(kHeaderBytes == 64);  // panels are aligned to cache lines

inline PrepackedHeader header_of(const GemmKernels& gemm, int64_t rows, int64_t columns,
                                 bool in_gate_order) {
  PrepackedHeader header{{}, {}, gemm.lanes, gemm.max_vectors, rows, columns, in_gate_order};
  std::memcpy(header.magic, kPrepackedMagic, sizeof header.magic);
  const std::string_view name = kFormatNames[static_cast<int>(gemm.format)];
  name.copy(header.format, sizeof header.format - 1);
  return header;
}

// The dtype of a tensor of weights in a format.
inline at::ScalarType unpacked_dtype(Format format) {
#define FASTLSTM_DTYPE(name, unpacked) at::k##unpacked,
  constexpr at::ScalarType kDtypes[] = {FASTLSTM_FOR_EACH_FORMAT(FASTLSTM_DTYPE)};
#undef FASTLSTM_DTYPE
  return kDtypes[static_cast<int>(format)];
}

// The product of this processor for the format of that name.
inline const GemmKernels& gemm_named(std::string_view format) {
  for (const GemmKernels* const gemm : kernel_table().gemms.by_format)
    if (gemm && gemm->unpack && format == kFormatNames[static_cast<int>(gemm->format)])
      return *gemm;
  TORCH_CHECK(false, "lstm_prepacked: expected a format that fastlstm.prepack takes, got \"",
              format, "\"");
}

// Matrices that are packed once are cut for up to four threads where threads share a step.
inline int64_t prepacked_groups(bool in_gate_order) { return in_gate_order ? 1 : 4; }

// The matrix W^T of a weight W [rows,K] that pack_weight packed.
inline Matrix prepacked_matrix(const GemmKernels& gemm, const at::Tensor& prepacked, int64_t rows,
                               int64_t K, bool in_gate_order) {
  const PrepackedHeader header = PrepackedHeader::of(prepacked);
  const PrepackedHeader expected = header_of(gemm, rows, K, in_gate_order);
  if (std::memcmp(&header, &expected, sizeof expected) != 0) {
    TORCH_CHECK(header.panels() == expected.panels(),
                "lstm_prepacked: expected weights that were packed for this processor (",
                expected.panels(), "), got some in ", header.panels(), ": pack the model here");
    TORCH_CHECK(false, "lstm_prepacked: expected a packed matrix [", rows, ", ", K, "]",
                in_gate_order ? " of gates" : "", ", got [", header.rows, ", ", header.columns, "]",
                header.in_gate_order ? " of gates" : "");
  }
  const int64_t columns = in_gate_order ? gate_columns(rows / 4, gemm.lanes) : rows;
  return {gemm, K, columns, prepacked_groups(in_gate_order), prepacked, kHeaderBytes};
}

}  // namespace fastlstm
