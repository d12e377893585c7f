// Packs matrices into panels, transposes blocks for the register tiles, and sums rows. Included
// once for each target.
#pragma once
#include "cpu/products/product.h"
#include "cpu/vec.h"

namespace fastlstm::FASTLSTM_ISA {

// Transposes a square of lanes x lanes elements in registers. There are two kinds of stages, each
// one instruction a vector on x86: first rows interleave within blocks of 16 bytes, which
// transposes the blocks; then the even and the odd blocks of two rows are separated.
template <int distance, typename A>
FASTLSTM_INLINE void transpose_stage(Vec<A> (&x)[Vec<A>::lanes]) {
  constexpr int L = Vec<A>::lanes, block = 16 / sizeof(A);
  typename Registers<A>::Bits first, second;
  for (int j = 0; j < L; ++j) {
    first[j] = distance < block ? j % 2 * L + j / block * block + j % block / 2
                                : j / block * 2 * block + j % block;
    second[j] = first[j] + (distance < block ? block / 2 : block);
  }
#pragma GCC unroll 16
  for (int i = 0; i < L; ++i) {
    if (i & distance) continue;
    const Vec<A> a = x[i], b = x[i + distance];
    x[i] = Vec<A>(shuffle(a.v, b.v, first));
    x[i + distance] = Vec<A>(shuffle(a.v, b.v, second));
  }
}

template <typename A>
FASTLSTM_INLINE void transpose_square(Vec<A> (&x)[Vec<A>::lanes]) {
  constexpr int L = Vec<A>::lanes, block = 16 / sizeof(A);
  if constexpr (block == 4) transpose_stage<2>(x);
  transpose_stage<1>(x);
  if constexpr (block < L) transpose_stage<block>(x);
  if constexpr (2 * block < L) transpose_stage<2 * block>(x);
}

// to[k * stride + n] = from[n][k] for n < lanes, k < K.
template <typename A>
static void transpose_vector(const A* const* from, int64_t K, A* to, int64_t stride) {
  constexpr int L = Vec<A>::lanes;
  int64_t k = 0;
  for (; k + L <= K; k += L) {
    Vec<A> x[L];
#pragma GCC unroll 16
    for (int n = 0; n < L; ++n) x[n] = Vec<A>::load(from[n] + k);
    transpose_square(x);
#pragma GCC unroll 16
    for (int n = 0; n < L; ++n) x[n].store(to + (k + n) * stride);
  }
  for (; k < K; ++k)  // pairs of 16 bits need not be aligned to 32
    for (int n = 0; n < L; ++n) __builtin_memcpy(to + k * stride + n, from[n] + k, sizeof(A));
}

template <typename A>
static void pack(const MatrixRows<A>& matrix, int64_t k_begin, int64_t K, const PanelShape& shape,
                 A* panel) {
  constexpr int L = Vec<A>::lanes;
  const int64_t width = shape.vectors * L;
  if (!matrix.transposed) {
    for (int64_t k = 0; k < K; ++k) {
      const A* from = matrix.rows[k_begin + k] + shape.first_column;
      for (int64_t n = 0; n < width; n += L) {
        Vec<A> x;
        load(from + n, x, shape.columns - n < L ? shape.columns - n : L);
        x.store(panel + k * width + n);
      }
    }
    return;
  }
  for (int64_t n = 0; n < width; n += L) {
    const A* columns[L];
    for (int l = 0; l < L; ++l) {
      const int64_t column = n + l < shape.columns ? n + l : 0;  // any column, where there is none
      columns[l] = matrix.rows[shape.first_column + column] + k_begin;
    }
    transpose_vector(columns, K, panel + n, width);
    for (int64_t l = shape.columns - n < 0 ? 0 : shape.columns - n; l < L; ++l)
      for (int64_t k = 0; k < K; ++k) panel[k * width + n + l] = A(0);
  }
}

template <typename A>
static void transpose(const A* const* from, int64_t rows, int64_t begin, int64_t end, A* to) {
  constexpr int L = Vec<A>::lanes;
  int64_t r = 0;
  for (; r + L <= rows; r += L) {
    const A* columns[L];
    for (int l = 0; l < L; ++l) columns[l] = from[r + l] + begin;
    transpose_vector(columns, end - begin, to + r, rows);
  }
  for (; r < rows; ++r)
    for (int64_t m = begin; m < end; ++m) to[(m - begin) * rows + r] = from[r][m];
}

// sums[r] (+)= the sum of row r.
template <typename T, typename A>
static void sum_rows(const T* const* rows, int64_t count, int64_t K, A* sums, bool accumulate) {
  constexpr int L = Vec<A>::lanes;
  for (int64_t r = 0; r < count; ++r) {
    Vec<A> lanes(A(0)), x;
    int64_t k = 0;
    for (; k + L <= K; k += L) {
      load(rows[r] + k, x);
      lanes = lanes + x;
    }
    A sum(0);
    for (; k < K; ++k) sum += A(rows[r][k]);
    for (int l = 0; l < L; ++l) sum += lanes.v[l];
    sums[r] = accumulate ? sums[r] + sum : sum;
  }
}

}  // namespace fastlstm::FASTLSTM_ISA
