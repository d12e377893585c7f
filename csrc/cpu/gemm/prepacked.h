// Prepacked weights: matrices of a layer that does not change, packed once for inference on a CPU.
// Each is a tensor of bytes: a header, then panels. Biases have the state's dtype.
#pragma once
#include <cstring>
#include <string>

#include "cpu/gemm/matrix.h"
#include "cpu/kernels.h"

namespace fastlstm {

// Packs a weight [rows,K] in a format. An int8 weight has a scale for each row [rows].
// `in_gate_order`: packs W_ih or W_hh, as gate_matrix_of does.
at::Tensor pack_weight(const at::Tensor& weight, const std::optional<at::Tensor>& scale,
                       const std::string& format, bool in_gate_order);
// Returns the weight that pack_weight packed, and its scales if it is int8.
std::tuple<at::Tensor, std::optional<at::Tensor>> unpack_weight(const at::Tensor& prepacked);

// The first bytes of a prepacked weight [rows,columns].
struct PrepackedHeader {
  char magic[8] = {'f', 'a', 's', 't', 'l', 's', 't', '2'}, format[16] = {};
  int64_t lanes = 0, vectors = 0;  // of the widest panel on the processor that packed the weight
  int64_t rows = 0, columns = 0, in_gate_order = 0;

  static PrepackedHeader of(const at::Tensor& prepacked);
  // Describes the panels in messages.
  std::string panels() const {
    return std::string(format) + " in panels of " + std::to_string(lanes) + "x" +
           std::to_string(vectors);
  }
};
constexpr int64_t kHeaderBytes = sizeof(PrepackedHeader);
static_assert(kHeaderBytes == 64);  // panels are aligned to cache lines

inline PrepackedHeader header_of(const GemmKernels& gemm, int64_t rows, int64_t columns,
                                 bool in_gate_order) {
  PrepackedHeader header{.lanes = gemm.lanes, .vectors = gemm.max_vectors, .rows = rows};
  header.columns = columns, header.in_gate_order = in_gate_order;
  std::strcpy(header.format, kFormatNames[static_cast<int>(gemm.format)]);
  return header;
}

// Returns the dtype of a weight before it is packed.
inline at::ScalarType unpacked_dtype(Format format) {
  return format == Format::int8       ? at::kChar
         : format == Format::bfloat16 ? at::kBFloat16
         : format == Format::float16  ? at::kHalf
         : format == Format::float64  ? at::kDouble
                                      : at::kFloat;
}

inline const GemmKernels& gemm_named(std::string_view format) {
  for (const GemmKernels* const gemm : kernel_table().gemms.by_format)
    if (gemm && gemm->unpack && format == kFormatNames[static_cast<int>(gemm->format)])
      return *gemm;
  TORCH_CHECK(false, "lstm_prepacked: expected a format that fastlstm.prepack takes, got \"",
              format, "\"");
}

// W_hr, the matrix that is not in gate order, is cut into panels for four groups of threads, since
// the threads of later calls are not known.
inline int64_t prepacked_groups(bool in_gate_order) {
  return in_gate_order ? Matrix::kInGateOrder : 4;
}

// The transpose of a weight [rows,K] that pack_weight packed. It uses the memory of `prepacked`.
inline Matrix prepacked_matrix(const GemmKernels& gemm, const at::Tensor& prepacked, int64_t rows,
                               int64_t K, bool in_gate_order) {
  const PrepackedHeader header = PrepackedHeader::of(prepacked);
  const PrepackedHeader expected = header_of(gemm, rows, K, in_gate_order);
  if (std::memcmp(&header, &expected, sizeof expected) != 0) {
    TORCH_CHECK(header.panels() == expected.panels(),
                "lstm_prepacked: expected weights that were packed for this processor (",
                expected.panels(), "), got weights in ", header.panels(), ": pack the model here");
    TORCH_CHECK(false, "lstm_prepacked: expected a prepacked matrix [", rows, ", ", K, "]",
                in_gate_order ? " of gates" : "", ", got [", header.rows, ", ", header.columns, "]",
                header.in_gate_order ? " of gates" : "");
  }
  const int64_t columns = in_gate_order ? GateOrder(gemm, rows / 4).columns() : rows;
  return {gemm, K, columns, prepacked_groups(in_gate_order), prepacked, kHeaderBytes};
}

}  // namespace fastlstm
