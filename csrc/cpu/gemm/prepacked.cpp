// Packs weights into the panels of this processor, and unpacks them for state_dict and pickle.
#include "cpu/gemm/prepacked.h"

#include <cstring>
#include <limits>

#include "core/layer.h"
#include "core/operators.h"

namespace fastlstm {
namespace {

// Sums of int8 products must fit into int32.
constexpr int64_t kMostInt8Terms = std::numeric_limits<int32_t>::max() / (255 * 127);

// Calls visit(row of the weight, column of a panel) for every column that has a row.
void for_each_column(const Matrix& matrix, const PrepackedHeader& of, const auto& visit) {
  const int64_t lanes = of.lanes, hidden = of.rows / 4;
  for (int64_t p = 0; p < matrix.panel_count(); ++p) {
    const auto [first, end] = matrix.columns({p, p + 1});
    for (int64_t column = first; column < end; ++column) {
      const int64_t gate = column / lanes % 4, unit = column / (4 * lanes) * lanes + column % lanes;
      const int64_t row = of.by_gates ? gate * hidden + unit : column;
      if (!of.by_gates || unit < hidden)
        visit(row, PanelColumn{matrix.panel(p), matrix.width(p), matrix.K(), column - first});
    }
  }
}

Tensor pack_as(const Product& product, const Tensor& weight, const OptionalTensor& scale,
               bool by_gates) {
  const int64_t rows = weight.size(0), K = weight.size(1);
  const Matrix matrix =
      by_gates ? gates_of(product, weight) : matrix_of(product, weight, true, pieces_of(by_gates));
  Tensor packed = at::empty({kHeaderBytes + matrix.nbytes()}, at::kByte);
  const PrepackedHeader of = header_of(product, rows, K, by_gates);
  std::memcpy(data<char>(packed), &of, sizeof of);
  std::memcpy(data<char>(packed) + kHeaderBytes, matrix.panel(0), matrix.nbytes());
  if (!scale) return packed;
  const Matrix in_place = prepacked_matrix(product, packed, rows, K, by_gates);
  for (int64_t p = 0; p < in_place.panel_count(); ++p)
    std::memset(in_place.panel(p), 0, product.header * in_place.width(p));
  const Tensor scales = in_memory(*scale).contiguous();
  for_each_column(in_place, of, [&](int64_t row, const PanelColumn& column) {
    product.put_scale(column, const_data<float>(scales)[row]);
  });
  return packed;
}

}  // namespace

PrepackedHeader PrepackedHeader::of(const Tensor& packed) {
  PrepackedHeader found{};
  const bool there = packed.scalar_type() == at::kByte && packed.dim() == 1 &&
                     packed.is_contiguous() && packed.numel() > kHeaderBytes;
  if (there) {
    check_memory(packed, "a packed weight");
    std::memcpy(&found, packed.const_data_ptr(), sizeof found);
    found.format[sizeof found.format - 1] = '\0';  // whatever the bytes are
  }
  TORCH_CHECK(there && std::memcmp(found.magic, kPrepackedMagic, sizeof kPrepackedMagic) == 0,
              "lstm_packed: expected weights as fastlstm.prepack packs them, got a tensor ",
              packed.sizes(), " of ", packed.scalar_type(), ": pack the model again");
  return found;
}

Tensor pack_weight(const Tensor& weight, const OptionalTensor& scale, const std::string& format,
                   bool by_gates) {
  const Product& product = product_named(format);
  const auto dtype = unpacked_dtype(product.given);
  TORCH_CHECK(weight.dim() == 2 && weight.numel() > 0 && weight.device().is_cpu() &&
                  weight.layout() == at::kStrided && weight.scalar_type() == dtype &&
                  scale.has_value() == bool(product.put_scale),
              "expected a weight of two dimensions in ", dtype, " on the CPU, and scales if ",
              format, " has some, got ", weight.sizes(), " ", weight.scalar_type(), " on ",
              weight.device());
  TORCH_CHECK(!scale || (scale->scalar_type() == at::kFloat && scale->device().is_cpu() &&
                         scale->dim() == 1 && scale->numel() == weight.size(0)),
              "expected a scale of float32 for each of ", weight.size(0), " rows, got ",
              scale ? scale->sizes() : at::IntArrayRef());
  TORCH_CHECK(!scale || weight.size(1) <= kMostInt8Terms, "expected at most ", kMostInt8Terms,
              " columns of ", format, ", got ", weight.size(1));
  return pack_as(product, in_memory(weight).contiguous(), scale, by_gates);
}

std::tuple<Tensor, OptionalTensor> unpack_weight(const Tensor& packed) {
  const PrepackedHeader of = PrepackedHeader::of(packed);
  const Product& product = product_named(of.format);
  const Matrix matrix = prepacked_matrix(product, packed, of.rows, of.columns, of.by_gates);
  const Tensor weight = at::empty({of.rows, of.columns}, unpacked_dtype(product.given));
  OptionalTensor scale;
  if (product.put_scale) scale = at::empty({of.rows}, at::kFloat);
  for_each_column(matrix, of, [&](int64_t row, const PanelColumn& column) {
    product.unpack(column, data<char>(weight) + row * of.columns * weight.element_size(),
                   scale ? data<float>(*scale) + row : nullptr);
  });
  return {weight, scale};
}

}  // namespace fastlstm
