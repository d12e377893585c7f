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
void for_each_column(PackedMatrix<W>& matrix, const PackedHeader& of, const Visit& visit) {
  const int64_t lanes = of.format.lanes, hidden = of.rows / 4;
  for (int64_t p = 0; p < matrix.panel_count(); ++p)
    for (int64_t n = 0; n < matrix.panels()[p].columns; ++n) {
      const int64_t column = matrix.panels()[p].first_column + n;
      const int64_t gate = column / lanes % 4, unit = column / (4 * lanes) * lanes + column % lanes;
      const int64_t row = of.by_gates ? gate * hidden + unit : column;
      if (!of.by_gates || unit < hidden) visit(row, matrix.panel(p), matrix.width(p), n);
    }
}

void write_headers(PackedMatrix<int8>& matrix, const PackedHeader& of, const Tensor& scale) {
  for (int64_t p = 0; p < matrix.panel_count(); ++p)
    std::fill_n(matrix.panel(p), matrix.product().header * matrix.width(p), int8{0});
  const Tensor scales = in_memory(scale).contiguous();
  for_each_column(matrix, of, [&](int64_t row, int8* panel, int64_t width, int64_t n) {
    const Int8Header to = header(panel, width);
    to.scales[n] = const_data<float>(scales)[row];
    for (int64_t k = 0; k < matrix.K(); ++k) to.sums[n] += element(panel, width, k, n).value;
  });
}

template <typename W>
Tensor pack_as(const Tensor& weight, const OptionalTensor& scale, bool by_gates) {
  const int64_t rows = weight.size(0), K = weight.size(1);
  const auto matrix = by_gates ? pack_gates<W>(weight) : pack<W>(weight, true, pieces_of(by_gates));
  const int64_t bytes = matrix.size() * sizeof(W);
  Tensor packed = at::empty({kHeaderBytes + bytes}, at::kByte);
  PackedHeader of{{}, format_here<W>(), rows, K, by_gates};
  std::memcpy(of.magic, kPackedMagic, sizeof kPackedMagic);
  std::memcpy(data<char>(packed), &of, sizeof of);
  std::memcpy(data<char>(packed) + kHeaderBytes, matrix.panel(0), bytes);
  if constexpr (std::is_same_v<W, int8>) {
    auto view = view_packed<W>(packed, rows, K, by_gates);
    write_headers(view, of, *scale);
  }
  return packed;
}

template <typename W>
std::tuple<Tensor, OptionalTensor> unpack_as(const Tensor& packed, const PackedHeader& of) {
  auto matrix = view_packed<W>(packed, of.rows, of.columns, of.by_gates);
  Tensor weight = at::empty({of.rows, of.columns}, scalar_type_of<W>);
  OptionalTensor scale;
  if (of.format.group) scale = at::empty({of.rows}, at::kFloat);
  for_each_column(matrix, of, [&](int64_t row, W* panel, int64_t width, int64_t n) {
    W* const to = data<W>(weight) + row * of.columns;
    for (int64_t k = 0; k < of.columns; ++k) to[k] = element(panel, width, k, n);
    if constexpr (std::is_same_v<W, int8>)
      data<float>(*scale)[row] = header(panel, width).scales[n];
  });
  return {weight, scale};
}

}  // namespace

PackedHeader PackedHeader::of(const Tensor& packed) {
  PackedHeader found{};
  const bool there = packed.scalar_type() == at::kByte && packed.dim() == 1 &&
                     packed.is_contiguous() && packed.numel() > kHeaderBytes;
  if (there) {
    check_memory(packed, "a packed weight");
    std::memcpy(&found, packed.const_data_ptr(), sizeof found);
    found.format.name[sizeof found.format.name - 1] = '\0';  // whatever the bytes are
  }
  TORCH_CHECK(there && std::memcmp(found.magic, kPackedMagic, sizeof kPackedMagic) == 0,
              "lstm_packed: expected weights as fastlstm.prepack packs them, got a tensor ",
              packed.sizes(), " of ", packed.scalar_type(), ": pack the model again");
  return found;
}

Tensor pack_weight(const Tensor& weight, const OptionalTensor& scale, const std::string& format,
                   bool by_gates) {
  return dispatch_format(format, [&](auto w) {
    using W = decltype(w);
    constexpr bool is_int8 = std::is_same_v<W, int8>;
    TORCH_CHECK(weight.dim() == 2 && weight.numel() > 0 && weight.device().is_cpu() &&
                    weight.layout() == at::kStrided && weight.scalar_type() == scalar_type_of<W> &&
                    scale.has_value() == is_int8,
                "expected a weight of two dimensions in ", scalar_type_of<W>,
                " on the CPU, and a scale if it is int8, got ", weight.sizes(), " ",
                weight.scalar_type(), " on ", weight.device());
    TORCH_CHECK(!is_int8 || (scale->scalar_type() == at::kFloat && scale->device().is_cpu() &&
                             scale->dim() == 1 && scale->size(0) == weight.size(0)),
                "expected a scale of float32 for each of ", weight.size(0), " rows, got ",
                is_int8 ? scale->sizes() : at::IntArrayRef());
    TORCH_CHECK(!is_int8 || weight.size(1) <= kMostInt8Terms, "expected at most ", kMostInt8Terms,
                " columns of int8, got ", weight.size(1));
    return pack_as<W>(in_memory(weight).contiguous(), scale, by_gates);
  });
}

std::tuple<Tensor, OptionalTensor> unpack_weight(const Tensor& packed) {
  const PackedHeader of = PackedHeader::of(packed);
  return dispatch_format(of.format.name,
                         [&](auto w) { return unpack_as<decltype(w)>(packed, of); });
}

}  // namespace fastlstm
