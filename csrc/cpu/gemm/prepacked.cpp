// Packs weights into the panels of this processor, and unpacks them for state_dict and pickle.
#include "cpu/gemm/prepacked.h"

#include <cstring>
#include <limits>

#include "core/layer_call.h"
#include "core/operators.h"

namespace fastlstm {
namespace {

// The largest number of products of an unsigned and a signed int8 whose sum fits into int32.
constexpr int64_t kMaxInt8Terms = std::numeric_limits<int32_t>::max() / (255 * 127);

// Calls visit(row of the weight, PanelColumn) for each column.
void for_each_column(const Matrix& matrix, const PrepackedHeader& header, const auto& visit) {
  std::vector<int64_t> rows;
  const GateOrder order(matrix.gemm(), header.rows / 4);
  order.for_each_row([&](int64_t row) { rows.push_back(row); });
  for (int64_t p = 0; p < matrix.panel_count(); ++p) {
    const auto [first, end] = matrix.columns({p, p + 1});
    for (int64_t column = first; column < end; ++column)
      visit(header.in_gate_order ? rows[column] : column,
            PanelColumn{matrix.panel(p), matrix.width(p), matrix.K(), column - first});
  }
}

Tensor pack_as(const GemmKernels& gemm, const Tensor& weight, const OptionalTensor& scale,
               bool in_gate_order) {
  const int64_t rows = weight.size(0), K = weight.size(1);
  const Matrix matrix = in_gate_order
                            ? gate_matrix_of(gemm, weight, GateOrder(gemm, rows / 4))
                            : matrix_of(gemm, weight, true, prepacked_groups(in_gate_order));
  Tensor prepacked = at::empty({kHeaderBytes + matrix.nbytes()}, at::kByte);
  const PrepackedHeader header = header_of(gemm, rows, K, in_gate_order);
  std::memcpy(data<char>(prepacked), &header, sizeof header);
  std::memcpy(data<char>(prepacked) + kHeaderBytes, matrix.panel(0), matrix.nbytes());
  if (!scale) return prepacked;
  const Matrix prepacked_view = prepacked_matrix(gemm, prepacked, rows, K, in_gate_order);
  for (int64_t p = 0; p < prepacked_view.panel_count(); ++p)  // the scales of padding columns are 0
    std::memset(prepacked_view.panel(p), 0, gemm.header_bytes * prepacked_view.width(p));
  const Tensor scales = in_memory(*scale).contiguous();
  for_each_column(prepacked_view, header, [&](int64_t row, const PanelColumn& column) {
    gemm.put_scale(column, const_data<float>(scales)[row]);
  });
  return prepacked;
}

}  // namespace

PrepackedHeader PrepackedHeader::of(const Tensor& prepacked) {
  PrepackedHeader header;
  const bool has_header = prepacked.scalar_type() == at::kByte && prepacked.dim() == 1 &&
                          prepacked.is_contiguous() && prepacked.numel() > kHeaderBytes;
  if (has_header) {
    check_memory(prepacked, "a prepacked weight");
    std::memcpy(&header, prepacked.const_data_ptr(), sizeof header);
    header.format[sizeof header.format - 1] = '\0';  // ends the string, whatever the bytes are
  }
  TORCH_CHECK(has_header && std::memcmp(&header, PrepackedHeader().magic, sizeof header.magic) == 0,
              "lstm_prepacked: expected weights as fastlstm.prepack packs them, got a tensor ",
              prepacked.sizes(), " of ", prepacked.scalar_type(), ": pack the model again");
  return header;
}

Tensor pack_weight(const Tensor& weight, const OptionalTensor& scale, const std::string& format,
                   bool in_gate_order) {
  const GemmKernels& gemm = gemm_named(format);
  const auto dtype = unpacked_dtype(gemm.source_format);
  TORCH_CHECK(weight.dim() == 2 && weight.numel() > 0 && weight.device().is_cpu() &&
                  weight.layout() == at::kStrided && weight.scalar_type() == dtype &&
                  scale.has_value() == bool(gemm.put_scale),
              "expected a weight of two dimensions in ", dtype, " on the CPU, ",
              gemm.put_scale ? "with" : "without", " scales, got ", weight.sizes(), " ",
              weight.scalar_type(), " on ", weight.device(), scale ? " with" : " without",
              " scales");
  TORCH_CHECK(!scale || (scale->scalar_type() == at::kFloat && scale->device().is_cpu() &&
                         scale->dim() == 1 && scale->numel() == weight.size(0)),
              "expected a scale of float32 for each of ", weight.size(0), " rows, got ",
              scale ? scale->sizes() : at::IntArrayRef());
  TORCH_CHECK(!scale || weight.size(1) <= kMaxInt8Terms, "expected at most ", kMaxInt8Terms,
              " columns of ", format, ", got ", weight.size(1));
  return pack_as(gemm, in_memory(weight).contiguous(), scale, in_gate_order);
}

std::tuple<Tensor, OptionalTensor> unpack_weight(const Tensor& prepacked) {
  const PrepackedHeader header = PrepackedHeader::of(prepacked);
  const GemmKernels& gemm = gemm_named(header.format);
  const Matrix matrix =
      prepacked_matrix(gemm, prepacked, header.rows, header.columns, header.in_gate_order);
  const Tensor weight =
      at::empty({header.rows, header.columns}, unpacked_dtype(gemm.source_format));
  OptionalTensor scale;
  if (gemm.put_scale) scale = at::empty({header.rows}, at::kFloat);
  for_each_column(matrix, header, [&](int64_t row, const PanelColumn& column) {
    gemm.unpack(column, data<char>(weight) + row * header.columns * weight.element_size(),
                scale ? data<float>(*scale) + row : nullptr);
  });
  return {weight, scale};
}

}  // namespace fastlstm
