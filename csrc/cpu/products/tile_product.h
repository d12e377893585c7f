// Our products as tables: included once for each target.
#pragma once
#include "cpu/products/packing.h"
#include "cpu/products/tiles.h"
#include "cpu/products/unpacked.h"

namespace fastlstm::FASTLSTM_ISA {

// The product by tiles of at most R x V, for prepacked weights alone.
template <int R, int V, typename T, typename A, bool trains = false>
static constexpr Product forward_product(Format format) {
  static_assert(4 % V == 0, "the four gates of a vector of units are whole panels");
  Product product{};
  product.format = product.source = format, product.bits = 8 * sizeof(T);
  if (sizeof(A) == 8) product.sums = Dtype::kFloat64;
  product.lanes = Vec<A>::lanes, product.rows = R, product.vectors = V;
  product.pack = pack<T>, product.unpack = unpack<T, 1>;
  product.multiply = multiply<R, V, T, A, trains>;
  product.rate = 4.0 / sizeof(T);
  product.panels = 4 / V;
  product.panels_of_one_row = V == 4 ? 2 : 4 / V;
  product.instructions = FASTLSTM_STRING(FASTLSTM_ISA);
  return product;
}

// The whole table.
template <int R, int V, typename T, typename A>
static constexpr Product tile_product(Format format) {
  Product product = forward_product<R, V, T, A, /*trains=*/true>(format);
  if constexpr (sizeof(T) < sizeof(A)) product.put_rows = put_rows<A, T>;
  // 8 rows transpose a square half as often as 4 and 4, and AVX-512 has the registers.
  product.multiply_unpacked = multiply_unpacked<(sizeof(Vec<A>) == 64 ? 8 : R), T, A>;
  product.transpose = transpose<T>;
  product.sum_rows = sum_rows<T, A>;
  if (sizeof(T) == 8) product.bytes_ahead = 3 << 17;  // for the sake of its peak memory
  return product;
}

// A product of bfloat16 also takes float32 rounded to it.
static constexpr Product with_rounding(Product product) {
  product.padding = 2, product.unpack = unpack<bfloat16, 2>;
  product.encode = encode_bfloat16, product.encoded_bytes = bytes_of_pairs;
  return product;
}

}  // namespace fastlstm::FASTLSTM_ISA
