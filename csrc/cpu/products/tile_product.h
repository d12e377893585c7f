// Our products as tables: included once for each target.
#pragma once
#include "cpu/products/packing.h"
#include "cpu/products/tiles.h"
#include "cpu/products/unpacked.h"

namespace fastlstm::FASTLSTM_ISA {

// By tiles of at most R x V: what weights that are packed once need.
template <int R, int V, typename T, typename A, bool fetches_next = false>
static constexpr Product<T> forward_product() {
  static_assert(4 % V == 0, "the four gates of a vector of units are whole panels");
  Product<T> product{};
  product.lanes = Vec<A>::lanes, product.rows = R, product.vectors = V;
  product.pack = pack;
  product.multiply = multiply<R, V, T, A, A, fetches_next>;
  product.panels = 4 / V;
  product.panels_of_one_row = V == 4 ? 2 : 4 / V;
  product.instructions = FASTLSTM_STRING(FASTLSTM_ISA);
  return product;
}

// The whole table.
template <int R, int V, typename T, typename A>
static constexpr Product<T> tile_product() {
  Product<T> product = forward_product<R, V, T, A, Target::fetches_next_panels>();
  product.multiply_and_fetch = multiply_and_fetch<R, V, T, A>;
  constexpr bool fetches_next = sizeof(T) == sizeof(A) && Target::fetches_next_panels;
  product.multiply_rounded = multiply<R, V, T, A, T, fetches_next>;
  product.put_rows_rounded = put_rows<T, A, T>;
  product.multiply_unpacked = multiply_unpacked<R, T, A>;
  product.transpose = transpose;
  product.sum_rows = sum_rows<T, A>;
  if (sizeof(T) == 8) product.bytes_ahead = 3 << 17;  // for the sake of its peak memory
  return product;
}

// A product of bfloat16 also takes float32 rounded to it.
static constexpr Product<bfloat16> with_rounding(Product<bfloat16> product) {
  product.together = product.padding = 2, product.encode = encode_bfloat16,
  product.encoded_size = whole_pairs;
  return product;
}

}  // namespace fastlstm::FASTLSTM_ISA
