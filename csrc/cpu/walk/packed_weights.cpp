// Packs weights into the panels of this processor, and unpacks them for state_dict and pickle.
#include <cstring>
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
Int8Header header(char* panel, int64_t width) {
  auto* const scales = reinterpret_cast<float*>(panel);
  return {scales, reinterpret_cast<int32_t*>(scales + width)};
}

// Where the elements of a column of a panel lie.
char* element(const Product& product, char* panel, int64_t width, int64_t k, int64_t n) {
  const int64_t place = (k / product.together * width + n) * product.together;
  return panel + product.header * width + (place + k % product.together) * product.bytes;
}

// Calls visit(row of the weight, panel, width of the panel, column of the panel) for every column
// that has a row.
void for_each_column(PackedMatrix& matrix, const PackedHeader& of, const auto& visit) {
  const int64_t lanes = of.format.lanes, hidden = of.rows / 4;
  for (int64_t p = 0; p < matrix.panel_count(); ++p)
    for (int64_t n = 0; n < matrix.panels()[p].columns; ++n) {
      const int64_t column = matrix.panels()[p].first_column + n;
      const int64_t gate = column / lanes % 4, unit = column / (4 * lanes) * lanes + column % lanes;
      const int64_t row = of.by_gates ? gate * hidden + unit : column;
      if (!of.by_gates || unit < hidden) visit(row, matrix.panel(p), matrix.width(p), n);
    }
}

void write_headers(PackedMatrix& matrix, const PackedHeader& of, const Tensor& scale) {
  const Product& product = matrix.product();
  for (int64_t p = 0; p < matrix.panel_count(); ++p)
    std::memset(matrix.panel(p), 0, product.header * matrix.width(p));
  const Tensor scales = in_memory(scale).contiguous();
  for_each_column(matrix, of, [&](int64_t row, char* panel, int64_t width, int64_t n) {
    const Int8Header to = header(panel, width);
    to.scales[n] = const_data<float>(scales)[row];
    for (int64_t k = 0; k < matrix.K(); ++k)
      to.sums[n] += *reinterpret_cast<int8_t*>(element(product, panel, width, k, n));
  });
}

Tensor pack_as(const Product& product, const Tensor& weight, const OptionalTensor& scale,
               bool by_gates) {
  const int64_t rows = weight.size(0), K = weight.size(1);
  const auto matrix =
      by_gates ? pack_gates(product, weight) : pack(product, weight, true, pieces_of(by_gates));
  Tensor packed = at::empty({kHeaderBytes + matrix.nbytes()}, at::kByte);
  PackedHeader of{{}, format_here(product), rows, K, by_gates};
  std::memcpy(of.magic, kPackedMagic, sizeof kPackedMagic);
  std::memcpy(data<char>(packed), &of, sizeof of);
  std::memcpy(data<char>(packed) + kHeaderBytes, matrix.panel(0), matrix.nbytes());
  if (scale) {
    auto view = view_packed(product, packed, rows, K, by_gates);
    write_headers(view, of, *scale);
  }
  return packed;
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
  const Product& product = product_named(format);
  const auto dtype = unpacked_dtype(product.given);
  const bool has_scales = product.header > 0;
  TORCH_CHECK(weight.dim() == 2 && weight.numel() > 0 && weight.device().is_cpu() &&
                  weight.layout() == at::kStrided && weight.scalar_type() == dtype &&
                  scale.has_value() == has_scales,
              "expected a weight of two dimensions in ", dtype,
              " on the CPU, and a scale if it is int8, got ", weight.sizes(), " ",
              weight.scalar_type(), " on ", weight.device());
  TORCH_CHECK(!scale || (scale->scalar_type() == at::kFloat && scale->device().is_cpu() &&
                         scale->dim() == 1 && scale->size(0) == weight.size(0)),
              "expected a scale of float32 for each of ", weight.size(0), " rows, got ",
              scale ? scale->sizes() : at::IntArrayRef());
  TORCH_CHECK(!scale || weight.size(1) <= kMostInt8Terms, "expected at most ", kMostInt8Terms,
              " columns of int8, got ", weight.size(1));
  return pack_as(product, in_memory(weight).contiguous(), scale, by_gates);
}

std::tuple<Tensor, OptionalTensor> unpack_weight(const Tensor& packed) {
  const PackedHeader of = PackedHeader::of(packed);
  const Product& product = product_named(of.format.name);
  auto matrix = view_packed(product, packed, of.rows, of.columns, of.by_gates);
  const Tensor weight = at::empty({of.rows, of.columns}, unpacked_dtype(product.given));
  OptionalTensor scale;
  if (product.header) scale = at::empty({of.rows}, at::kFloat);
  for_each_column(matrix, of, [&](int64_t row, char* panel, int64_t width, int64_t n) {
    char* const to = data<char>(weight) + row * of.columns * product.bytes;
    for (int64_t k = 0; k < of.columns; ++k)
      std::memcpy(to + k * product.bytes, element(product, panel, width, k, n), product.bytes);
    if (scale) data<float>(*scale)[row] = header(panel, width).scales[n];
  });
  return {weight, scale};
}

}  // namespace fastlstm
