// Packs pairs of bfloat16 into panels and transposed blocks. Included by the targets whose dot
// products take pairs.
#pragma once
#include "cpu/products/packing.h"

namespace fastlstm::FASTLSTM_ISA {

// A pair of bfloat16 is moved as one float; moves do not change bits.
FASTLSTM_INLINE const float* as_pairs(const bfloat16* from) {
  return reinterpret_cast<const float*>(from);
}
FASTLSTM_INLINE float* as_pairs(bfloat16* from) { return reinterpret_cast<float*>(from); }

// Rounds a row of float32 for a product of bfloat16; an odd K gets a zero.
static int64_t whole_pairs(int64_t K) { return K + K % 2; }
static void encode_bfloat16(const float* row, int64_t K, bfloat16* to) {
  constexpr int64_t L = Vec<float>::lanes;
  Vec<float> x;
  for (int64_t k = 0; k < K; k += L) {
    const int64_t n = K - k < L ? K - k : L;
    load(row + k, x, n);
    store(x, to + k, n);
  }
  if (K % 2) to[K] = bfloat16(0.0f);
}

static void pack(const MatrixRows<bfloat16>& matrix, int64_t k_begin, int64_t K,
                 const PanelShape& shape, bfloat16* panel) {
  constexpr int L = Vec<float>::lanes;
  const int64_t width = shape.vectors * L, pairs = K / 2;
  if (matrix.transposed) {
    for (int64_t n = 0; n < width; n += L) {
      const float* columns[L];
      for (int l = 0; l < L; ++l) {
        const int64_t column =
            n + l < shape.columns ? n + l : 0;  // any column, where there is none
        columns[l] = as_pairs(matrix.rows[shape.first_column + column] + k_begin);
      }
      transpose_vector(columns, pairs, as_pairs(panel) + n, width);
    }
    for (int64_t k = 2 * pairs; k < K; ++k)
      for (int64_t n = 0; n < width; ++n) {
        const int64_t column = n < shape.columns ? n : 0;
        panel[2 * (pairs * width + n)] = matrix.rows[shape.first_column + column][k_begin + k];
        panel[2 * (pairs * width + n) + 1] = bfloat16(0.0f);
      }
  } else {
    for (int64_t k = 0; k < K; k += 2) {
      const bfloat16* even = matrix.rows[k_begin + k] + shape.first_column;
      const bfloat16* odd = k + 1 < K ? matrix.rows[k_begin + k + 1] + shape.first_column : nullptr;
      bfloat16* to = panel + k * width;
      for (int64_t n = 0; n < shape.columns; ++n) {
        to[2 * n] = even[n];
        to[2 * n + 1] = odd ? odd[n] : bfloat16(0.0f);
      }
    }
  }
  for (int64_t k = 0; k < (K + 1) / 2; ++k)
    for (int64_t n = shape.columns; n < width; ++n)
      panel[2 * (k * width + n)] = panel[2 * (k * width + n) + 1] = bfloat16(0.0f);
}

// Of targets that multiply whole layers in bfloat16.
[[maybe_unused]] static void transpose(const bfloat16* const* from, int64_t rows, int64_t begin,
                                       int64_t end, bfloat16* to) {
  constexpr int L = Vec<float>::lanes;
  int64_t r = 0;
  if (rows % 2 == 0) {  // so that the pairs of every row of `to` are aligned to each other
    bfloat16 pairs[L][2 * 64];
    for (; r + 2 * L <= rows; r += 2 * L)
      for (int64_t m = begin; m < end; m += 64) {
        const int64_t count = end - m < 64 ? end - m : 64;
        const float* columns[L];
        for (int l = 0; l < L; ++l) {
          const bfloat16 *even = from[r + 2 * l] + m, *odd = from[r + 2 * l + 1] + m;
          for (int64_t i = 0; i < count; ++i)
            pairs[l][2 * i] = even[i], pairs[l][2 * i + 1] = odd[i];
          columns[l] = as_pairs(pairs[l]);
        }
        transpose_vector(columns, count, as_pairs(to + (m - begin) * rows + r), rows / 2);
      }
  }
  for (; r < rows; ++r)
    for (int64_t m = begin; m < end; ++m) to[(m - begin) * rows + r] = from[r][m];
}

}  // namespace fastlstm::FASTLSTM_ISA
