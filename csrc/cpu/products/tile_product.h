// Fills the `Product` of a format with the functions of tiles.h and packing.h. Included once for
// each target.
#pragma once
#include "cpu/products/packing.h"
#include "cpu/products/tiles.h"
#include "cpu/products/unpacked.h"

namespace fastlstm::FASTLSTM_ISA {

// The product of prepacked weights, by register tiles of at most R rows and V vectors.
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

// The same, with what training and weights that are not prepacked need.
template <int R, int V, typename T, typename A>
static constexpr Product tile_product(Format format) {
  Product product = forward_product<R, V, T, A, /*trains=*/true>(format);
  if constexpr (sizeof(T) < sizeof(A)) product.put_rows = put_rows<A, T>;
  // Each tile of rows transposes the squares again. So 8 rows in one tile are faster than 4 and 4,
  // and AVX-512 has enough registers.
  product.multiply_unpacked = multiply_unpacked<(sizeof(Vec<A>) == 64 ? 8 : R), T, A>;
  if constexpr (sizeof(T) == sizeof(A)) product.multiply_lines = multiply_lines<A>;
  product.transpose = transpose<T>;
  product.sum_rows = sum_rows<T, A>;
  if (sizeof(T) == 8) product.bytes_ahead = 3 << 17;  // limits the peak memory
  return product;
}

// A product of bfloat16 that also takes rows of float32, which it rounds to bfloat16.
static constexpr Product with_rounding(Product product) {
  product.padding = 2, product.unpack = unpack<bfloat16, 2>;
  product.encode = encode_bfloat16, product.encoded_bytes = bytes_of_pairs;
  return product;
}

}  // namespace fastlstm::FASTLSTM_ISA
