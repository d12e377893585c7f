// Packs weights into the panels of this processor, and unpacks them for state_dict and pickle.

#include <algorithm>
#include <limits>

#include "core/operators.h"
#include "core/packed.h"
#include "cpu/layer/packed_direction.h"

namespace fastlstm {
namespace {

// Sums of int8 products must fit into int32.
constexpr int64_t kMostInt8Terms = std::numeric_limits<int32_t>::max() / (255 * 127);

// In front of a panel of int8 stand the scale of each column and the sum of its elements.
struct Int8Header {
  float* scales;
  int32_t* sums;
};
Int8Header header(int8* panel, int64_t width) {
  auto* const scales = reinterpret_cast<float*>(panel);
  return {scales, reinterpret_cast<int32_t*>(scales + width)};
}

template <typename W>
W& element(W* panel, int64_t width, int64_t k, int64_t n) {
  const Product<W>& product = product_of<W>();
  const int64_t together = product.together;
  return panel[product.header * width + (k / together * width + n) * together + k % together];
}

// Calls visit(row of the weight, panel, width of the panel, column of the panel) for every column
// that has a row.
template <typename W, typename Visit>
void for_each_column(PackedMatrix<W>& matrix, WeightRole role, int64_t rows, const Visit& visit) {
  const int64_t lanes = product_of<W>().lanes, hidden = rows / 4;
  for (size_t p = 0; p < matrix.panels().size(); ++p) {
    const PanelShape& shape = matrix.panels()[p];
    const int64_t width = shape.vectors * lanes;
    for (int64_t n = 0; n < shape.columns; ++n) {
      const int64_t column = shape.first_column + n;
      if (role == WeightRole::kProjection) {
        visit(column, matrix.panel(p), width, n);
        continue;
      }
      const int64_t gate = column / lanes % 4, unit = column / (4 * lanes) * lanes + column % lanes;
      if (unit < hidden) visit(gate * hidden + unit, matrix.panel(p), width, n);
    }
  }
}

void write_headers(PackedMatrix<int8>& matrix, WeightRole role, int64_t rows, const Tensor& scale) {
  for (size_t p = 0; p < matrix.panels().size(); ++p)
    std::fill_n(matrix.panel(p), product_of<int8>().header * matrix.width(p), int8{0});
  const Tensor scales = in_memory(scale).contiguous();
  for_each_column(matrix, role, rows, [&](int64_t row, int8* panel, int64_t width, int64_t n) {
    const Int8Header to = header(panel, width);
    to.scales[n] = const_data<float>(scales)[row];
    for (int64_t k = 0; k < matrix.K(); ++k) to.sums[n] += element(panel, width, k, n).value;
  });
}

template <typename W>
Tensor pack_as(const Tensor& weight, const OptionalTensor& scale, WeightRole role) {
  const int64_t rows = weight.size(0), K = weight.size(1);
  const auto matrix = role == WeightRole::kToGates ? pack_gates<W>(weight)
                                                   : pack_transposed<W>(weight, pieces_of(role));
  Tensor packed = at::empty({matrix.size()}, weight.options());
  std::copy_n(matrix.panel(0), matrix.size(), data<W>(packed));
  if constexpr (std::is_same_v<W, int8>) {
    auto view = view_packed<W>(packed, rows, K, role);
    write_headers(view, role, rows, scale.value());
  }
  return packed;
}

template <typename W>
std::tuple<Tensor, OptionalTensor> unpack_as(const Tensor& packed, int64_t rows, int64_t K,
                                             WeightRole role) {
  auto matrix = view_packed<W>(packed, rows, K, role);
  Tensor weight = at::empty({rows, K}, packed.options());
  OptionalTensor scale;
  if (std::is_same_v<W, int8>) scale = at::empty({rows}, at::kFloat);
  for_each_column(matrix, role, rows, [&](int64_t row, W* panel, int64_t width, int64_t n) {
    for (int64_t k = 0; k < K; ++k) data<W>(weight)[row * K + k] = element(panel, width, k, n);
    if constexpr (std::is_same_v<W, int8>)
      data<float>(*scale)[row] = header(panel, width).scales[n];
  });
  return {weight, scale};
}

template <typename Function>
auto by_weight_dtype(at::ScalarType dtype, const Function& function) {
  switch (dtype) {
    case at::kDouble:
      return function(double());
    case at::kFloat:
      return function(float());
    case at::kBFloat16:
      return function(bfloat16());
    case at::kChar:
      return function(int8());
    default:
      TORCH_CHECK(false,
                  "lstm_packed: expected weights of float32, float64, bfloat16 or int8, got ",
                  dtype);
  }
}

WeightRole role_of(std::string_view name) {
  if (name == "W_ih" || name == "W_hh") return WeightRole::kToGates;
  TORCH_CHECK(name == "W_hr", "expected W_ih, W_hh or W_hr, got ", name);
  return WeightRole::kProjection;
}

}  // namespace

std::string packed_layout() {
  const auto name = [](const auto& product) {
    return std::to_string(product.lanes) + "x" + std::to_string(product.vectors);
  };
  return name(product_of<float>()) + " by gates";
}

Tensor pack_weight(const Tensor& weight, const OptionalTensor& scale, const std::string& role) {
  const bool is_int8 = weight.scalar_type() == at::kChar;
  TORCH_CHECK(weight.dim() == 2 && weight.numel() > 0 && weight.device().is_cpu() &&
                  weight.layout() == at::kStrided && scale.has_value() == is_int8,
              "expected a weight of two dimensions on the CPU, and a scale if it is int8, got ",
              weight.sizes(), " ", weight.scalar_type(), " on ", weight.device());
  TORCH_CHECK(!is_int8 || (scale->scalar_type() == at::kFloat && scale->device().is_cpu() &&
                           scale->dim() == 1 && scale->size(0) == weight.size(0)),
              "expected a scale of float32 for each of ", weight.size(0), " rows, got ",
              is_int8 ? scale->sizes() : at::IntArrayRef(), " ",
              is_int8 ? scale->scalar_type() : at::kFloat);
  TORCH_CHECK(!is_int8 || weight.size(1) <= kMostInt8Terms, "expected at most ", kMostInt8Terms,
              " columns of int8, got ", weight.size(1));
  return by_weight_dtype(weight.scalar_type(), [&](auto w) {
    return pack_as<decltype(w)>(in_memory(weight).contiguous(), scale, role_of(role));
  });
}

std::tuple<Tensor, OptionalTensor> unpack_weight(const Tensor& packed, int64_t rows, int64_t K,
                                                 const std::string& role) {
  return by_weight_dtype(packed.scalar_type(), [&](auto w) {
    return unpack_as<decltype(w)>(packed, rows, K, role_of(role));
  });
}

}  // namespace fastlstm
