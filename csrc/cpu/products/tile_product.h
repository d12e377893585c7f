// Our products as tables: included once for each target.
#pragma once
#include "cpu/products/packing_pairs.h"
#include "cpu/products/tiles.h"
#include "cpu/products/unpacked.h"

namespace fastlstm {
namespace FASTLSTM_ISA {

// By tiles of at most R x V.
template <int R, int V, typename T, typename A>
static constexpr Product<T> tile_product() {
  static_assert(4 % V == 0, "the four gates of a vector of units are whole panels");
  Product<T> product = {Vec<A>::lanes,
                        R,
                        V,
                        pack,
                        multiply<R, V, T, A, A>,
                        multiply_and_fetch<R, V, T, A>,
                        multiply<R, V, T, A, T>,
                        put_rows<T, A, A>,
                        put_rows<T, A, T>,
                        multiply_unpacked<R, T, A>,
                        transpose,
                        sum_rows<T, A>};
  product.panels = 4 / V;
  product.panels_of_one_row = V == 4 ? 2 : 4 / V;
  if (sizeof(T) == 8) product.bytes_ahead = 3 << 17;  // for the sake of its peak memory
  product.instructions = FASTLSTM_STRING(FASTLSTM_ISA);
  return product;
}

// Of bfloat16, and of float32 rounded to it.
template <int R, int V>
static constexpr Product<bfloat16> bfloat16_product() {
  Product<bfloat16> product = tile_product<R, V, bfloat16, float>();
  product.together = product.padding = 2, product.encode = encode_bfloat16,
  product.encoded_size = whole_pairs;
  return product;
}

}  // namespace FASTLSTM_ISA
}  // namespace fastlstm
