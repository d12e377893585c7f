// The formats in which matrices are packed once, and what stands in front of the panels of each.
#pragma once
#include <cstring>
#include <string>
#include <string_view>

#include "cpu/gemm/packed_matrix.h"
#include "cpu/targets/kernels.h"

namespace fastlstm {

struct WeightFormat {
  char name[16];
  int64_t lanes, vectors;  // of the widest panel, as this processor reads it

  bool operator==(const WeightFormat& other) const {
    return std::memcmp(this, &other, sizeof other) == 0;
  }
  std::string text() const {
    return std::string(name) + " in panels of " + std::to_string(lanes) + "x" +
           std::to_string(vectors);
  }
};

// The first bytes of a packed matrix: of W [rows,columns], its rows in the order of pack_gates or
// in their own.
struct PackedHeader {
  char magic[8];
  WeightFormat format;
  int64_t rows, columns, by_gates;

  // Throws for a tensor that has no header.
  static PackedHeader of(const at::Tensor& packed);
};
constexpr char kPackedMagic[8] = {'f', 'a', 's', 't', 'l', 's', 't', '1'};
constexpr int64_t kHeaderBytes = 64;  // panels are aligned to cache lines
static_assert(sizeof(PackedHeader) == kHeaderBytes);

// The dtype of a tensor of weights in a format, and the format of a product's panels.
inline at::ScalarType unpacked_dtype(Format format) {
#define FASTLSTM_DTYPE(name, unpacked) at::k##unpacked,
  constexpr at::ScalarType kDtypes[] = {FASTLSTM_FOR_EACH_FORMAT(FASTLSTM_DTYPE)};
#undef FASTLSTM_DTYPE
  return kDtypes[static_cast<int>(format)];
}
inline WeightFormat format_here(const Product& product) {
  WeightFormat format{{}, product.lanes, product.vectors};
  std::strncpy(format.name, kFormatNames[static_cast<int>(product.format)], sizeof format.name);
  return format;
}

// The product of this processor for the format of that name.
inline const Product& product_named(std::string_view format) {
  for (const Product* const product : kernel_table().products.of)
    if (product && product->unpack && format == kFormatNames[static_cast<int>(product->format)])
      return *product;
  TORCH_CHECK(false, "lstm_packed: expected a format that fastlstm.prepack takes, got \"", format,
              "\"");
}

}  // namespace fastlstm
