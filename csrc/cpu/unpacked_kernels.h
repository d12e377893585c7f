// The product of few rows with a transposed matrix as it lies in memory: included by one source
// file per instruction set.
//
// Squares of lanes x lanes elements are transposed in registers and multiplied from there, so no
// panel is written and read back. Sums run as in tiled_kernels.h, and so do the bits. Shuffles
// bound it, about 45 GB/s of matrix on a core of Zen 4; every tile of rows pays for them again.
#pragma once
#include "packing_kernels.h"
#include "tiled_kernels.h"

namespace fastlstm {
namespace FASTLSTM_ISA {

// Elements of T that a lane of a square holds: pairs of bfloat16.
template <typename T, typename A>
constexpr int kPerLane = sizeof(A) / sizeof(T);

// The first n <= lanes terms; the others are zero.
template <typename A>
FASTLSTM_HD void load_terms(const A* from, int64_t n, Vec<A>& x) {
  load(from, x, n);
}
// sum + the product of the first of `n` terms of a row with a row of a transposed square.
template <typename A>
FASTLSTM_HD Vec<A> add_term(const A* a, int64_t, const Vec<A>& x, const Vec<A>& sum) {
  return fused(Vec<A>(*a), x, sum);
}

#if defined(FASTLSTM_BFLOAT16_PAIRS)
FASTLSTM_HD void load_terms(const bfloat16* from, int64_t n, Vec<float>& x) {
  const __m512i pairs = _mm512_maskz_loadu_epi16((uint64_t(1) << n) - 1, from);
  std::memcpy(&x.v, &pairs, sizeof x.v);
}
FASTLSTM_HD Vec<float> add_term(const bfloat16* a, int64_t n, const Vec<float>& x,
                                const Vec<float>& sum) {
  uint32_t pair = a->bits;
  if (n > 1) std::memcpy(&pair, a, sizeof pair);
  return Vec<float>(
      _mm512_dpbf16_ps(sum.v, (__m512bh)_mm512_set1_epi32(static_cast<int>(pair)), (__m512bh)x.v));
}
#endif

// sum[r] += the products of the n terms of a square that begins at k.
template <int R, typename T, typename A>
FASTLSTM_HD void add_square(const T* const (&a)[R], int64_t k, int64_t n, const T* const* columns,
                            Vec<A> (&sum)[R]) {
  constexpr int L = Vec<A>::lanes, P = kPerLane<T, A>;
  Vec<A> x[L];
#pragma GCC unroll 16
  for (int l = 0; l < L; ++l)
    if (n == L * P)
      std::memcpy(&x[l].v, columns[l] + k, sizeof x[l].v);
    else
      load_terms(columns[l] + k, n, x[l]);
  transpose_square(x);
#pragma GCC unroll 16
  for (int l = 0; l < L; ++l) {
    if (l * P >= n) return;
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) sum[r] = add_term(a[r] + k + l * P, n - l * P, x[l], sum[r]);
  }
}

template <int R, typename T, typename A>
static void multiply_unpacked_tile(const T* const* rows, int64_t k_begin, int64_t K,
                                   const T* const* columns, const T* next, A* const* c,
                                   bool accumulate, const A* bias) {
  constexpr int L = Vec<A>::lanes, square = L * kPerLane<T, A>;
  const T* a[R];
  Vec<A> sum[R], piece[R];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) a[r] = rows[r], sum[r] = Vec<A>(A(0));
  const int64_t end = k_begin + K;
  for (int64_t first = k_begin; first < end; first += kTerms) {
    const int64_t last = end - first < kTerms ? end : first + kTerms;
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) piece[r] = Vec<A>(A(0));
    int64_t k = first;
    for (; k + square <= last; k += square, next += L * square) {
#pragma GCC unroll 16
      for (int n = 0; n < L * FASTLSTM_VECTOR_BYTES / 64; ++n)
        __builtin_prefetch(next + n * 64 / sizeof(T), 0, 2);
      add_square(a, k, square, columns, piece);
    }
    if (k < last) add_square(a, k, last - k, columns, piece);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) sum[r] = first == k_begin ? piece[r] : sum[r] + piece[r];
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    Vec<A> before(A(0));
    if (accumulate)
      load(c[r], before);
    else if (bias)
      load(bias, before);
    store(before + sum[r], c[r]);
  }
}

template <typename T, typename A>
static void multiply_unpacked(const T* const* a, int64_t rows, int64_t k_begin, int64_t K,
                              const T* const* columns, const T* next, A* const* c, bool accumulate,
                              const A* bias) {
  for_row_tiles(rows, [&](auto R, int64_t first) {
    multiply_unpacked_tile<decltype(R)::value>(a + first, k_begin, K, columns, next, c + first,
                                               accumulate, bias);
  });
}

}  // namespace FASTLSTM_ISA
}  // namespace fastlstm
