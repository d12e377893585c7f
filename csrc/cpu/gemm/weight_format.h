// The formats in which matrices are packed once, and what stands in front of the panels of each.
#pragma once
#include <cstring>
#include <string>

#include "cpu/gemm/packed_matrix.h"

namespace fastlstm {

struct WeightFormat {
  char name[16];
  int32_t bits, group;     // 0: no scales
  int32_t lanes, vectors;  // of the widest panel, as this processor reads it

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

template <typename W>
WeightFormat format_here();
template <typename W>
constexpr at::ScalarType scalar_type_of = at::kFloat;
#define FASTLSTM_FORMAT(W, name, unpacked, bits, group)                          \
  template <>                                                                    \
  inline WeightFormat format_here<W>() {                                         \
    return {#name, bits, group, product_of<W>().lanes, product_of<W>().vectors}; \
  }                                                                              \
  template <>                                                                    \
  inline constexpr at::ScalarType scalar_type_of<W> = at::k##unpacked;
FASTLSTM_FOR_EACH_FORMAT(FASTLSTM_FORMAT)
#undef FASTLSTM_FORMAT

// function(W()) for the format of that name.
auto dispatch_format(std::string_view format, const auto& function) {
#define FASTLSTM_CASE(W, name, unpacked, bits, group) \
  if (format == #name) return function(W());
  FASTLSTM_FOR_EACH_FORMAT(FASTLSTM_CASE)
#undef FASTLSTM_CASE
  TORCH_CHECK(false, "lstm_packed: expected weights in float32, float64, bfloat16 or int8, got \"",
              format, "\"");
}

}  // namespace fastlstm
