// The products of few rows with a matrix as it lies in memory, transposed or not: included once for
// each target.
//
// Transposed, squares of lanes x lanes elements are transposed in registers and multiplied from
// there, so no panel is written and read back. Sums run as in tiles.h, and so do the bits. Memory
// bounds a few rows, so each column is fetched a few lines ahead, beyond its end too: a processor's
// own prefetcher begins anew with every column. Shuffles bound more rows; every tile of rows
// repeats them.
#pragma once
#include "cpu/products/packing.h"
#include "cpu/products/tiles.h"

namespace fastlstm::FASTLSTM_ISA {

// sum[r] += the products of the n terms of a square that begins at k.
template <int R, typename T, typename A>
FASTLSTM_INLINE void add_square(const T* const* a, int64_t k, int64_t n, const Columns& columns,
                                Vec<A> (&sum)[R]) {
  constexpr int L = Vec<A>::lanes, P = DotStep<T>::terms_per_lane;
  Vec<A> x[L];
  auto* column = static_cast<const T*>(columns.first) + k;
#pragma GCC unroll 16
  for (int l = 0; l < L; ++l) {
    x[l] = n == L * P ? load_lanes<A>(column) : DotStep<T>::load_first(column, n);
    if (l + 1 < columns.count) column += columns.stride;
  }
  transpose_square(x);
#pragma GCC unroll 16
  for (int l = 0; l < L; ++l) {
    if (l * P >= n) return;
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const T* const at = a[r] + k + l * P;
      const Vec<A> terms = l * P + P <= n ? DotStep<T>::template broadcast<P>(at)
                                          : DotStep<T>::template broadcast<1>(at);
      sum[r] = DotStep<T>::multiply_add(terms, x[l], sum[r]);
    }
  }
}

template <typename T, typename A, int R>
static void multiply_unpacked_tile(const PanelProduct& p, const Columns& columns, const void* next,
                                   Int<R>, int64_t first_row) {
  constexpr int L = Vec<A>::lanes, square = L * DotStep<T>::terms_per_lane;
  constexpr int64_t kAhead = 512 / sizeof(T);
  const T* a[R];
  Vec<A> sum[R], piece[R];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    a[r] = static_cast<const T*>(p.a[first_row + r]);
    sum[r] = Vec<A>(A(0));
  }
  const int64_t end = p.k_begin + p.K;
  for (int64_t first = p.k_begin; first < end; first += kTermsPerPartialSum) {
    const int64_t last = end - first < kTermsPerPartialSum ? end : first + kTermsPerPartialSum;
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) piece[r] = Vec<A>(A(0));
    int64_t k = first;
    for (; k + square <= last; k += square) {
      const int64_t at = k + kAhead;
      auto* ahead =
          static_cast<const T*>(at < end ? columns.first : next) + (at < end ? at : at - end);
#pragma GCC unroll 16
      for (int l = 0; l < L; ++l, ahead += columns.stride) __builtin_prefetch(ahead);
      add_square(a, k, square, columns, piece);
    }
    if (k < last) add_square(a, k, last - k, columns, piece);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) sum[r] = first == p.k_begin ? piece[r] : sum[r] + piece[r];
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) put_sums(p, sum[r], static_cast<A*>(p.c[first_row + r]), 0);
}

template <int R, typename T, typename A>
static void multiply_unpacked_columns(const PanelProduct& p, const Columns& columns,
                                      const void* next) {
  for_row_tiles<R>(p.rows,
                   [&](auto... tile) { multiply_unpacked_tile<T, A>(p, columns, next, tile...); });
}

// sums[r] = or += the products of `count` rows of a matrix that begin at term k, of all rows r.
// The rows that follow come into the L2 cache meanwhile.
template <typename A, int count>
FASTLSTM_INLINE void add_lines(const PanelProduct& p, const Columns& of, int64_t k, Int<count>,
                               A* sums, bool first) {
  constexpr int L = Vec<A>::lanes;
  const A* const lines = static_cast<const A*>(of.first) + k * of.stride;
  const int64_t width = p.shape.vectors * L;
  for (int64_t n = 0; n < of.count; n += L) {
    Vec<A> x[count];
#pragma GCC unroll 8
    for (int i = 0; i < count; ++i) {
      const A* const at = lines + i * of.stride + n;
      __builtin_prefetch(at + count * of.stride, 0, 2);
      load(at, x[i], of.count - n < L ? of.count - n : L);
    }
    for (int64_t r = 0; r < p.rows; ++r) {
      const A* const terms = static_cast<const A*>(p.a[r]) + k;
      A* const to = sums + r * width + n;
      Vec<A> sum(A(0));
      if (!first) sum = Vec<A>::load(to);
#pragma GCC unroll 8
      for (int i = 0; i < count; ++i) sum = fused(Vec<A>(terms[i]), x[i], sum);
      sum.store(to);
    }
  }
}

// The same for a matrix that is not transposed, a few of its rows at a time, in sums that stay in
// the L1 cache. They run as in tiles.h.
template <typename A>
static void multiply_unpacked_rows(const PanelProduct& p, const Columns& of, void* room) {
  constexpr int L = Vec<A>::lanes, kLines = 8;
  const int64_t end = p.k_begin + p.K, width = p.shape.vectors * L;
  A *const sums = static_cast<A*>(room), *const piece = sums + p.rows * width;
  for (int64_t begin = p.k_begin; begin < end; begin += kTermsPerPartialSum) {
    const int64_t last = end - begin < kTermsPerPartialSum ? end : begin + kTermsPerPartialSum;
    A* const to = begin == p.k_begin ? sums : piece;
    int64_t k = begin;
    for (; k + kLines <= last; k += kLines) add_lines(p, of, k, Int<kLines>(), to, k == begin);
    for (; k < last; ++k) add_lines(p, of, k, Int<1>(), to, k == begin);
    for (int64_t n = 0; to == piece && n < p.rows * width; n += L)
      (Vec<A>::load(sums + n) + Vec<A>::load(piece + n)).store(sums + n);
  }
  for (int64_t r = 0; r < p.rows; ++r)
    for (int64_t v = 0; v < p.shape.vectors; ++v)
      put_sums(p, Vec<A>::load(sums + r * width + v * L), static_cast<A*>(p.c[r]), v);
}

}  // namespace fastlstm::FASTLSTM_ISA
