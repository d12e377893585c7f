// Products of few rows with a matrix that is not packed into panels. Included once for each target.
// The sums add their terms in the order of tiles.h, so they have the same bits.
//
// A transposed matrix: squares of lanes x lanes elements are transposed in registers and multiplied
// from there. With few rows memory bounds the product. So each column is prefetched a few cache
// lines ahead, also beyond its end, because the prefetcher of a processor starts anew with every
// column. The lines go to the L2 cache: the L1 cache waits for too few lines at a time. With more
// rows the shuffles bound it, because every tile of rows repeats them. The sums of one row and one
// vector of columns are one chain of dependent instructions, so a single row may be multiplied by
// several vectors at a time (unpacked_vectors_of_one_row).
//
// A matrix that is not transposed: register tiles read its rows like those of a panel, only a few
// rows at a time. The sums wait in a buffer meanwhile. So each page of the matrix is visited once.
// If a tile read all rows at once, each page would be visited again for every few columns. Rows of
// bfloat16 are first packed as pairs, which the L1 cache keeps until all rows of a are multiplied.
#pragma once
#include "cpu/products/packing.h"

namespace fastlstm::FASTLSTM_ISA {

// Adds terms [k + begin, k + end) to the sums: sum[r] += a[r][i] * columns[i] for each term i. The
// terms [k, k + lanes * terms_per_lane) form a square.
template <int R, typename T, typename A>
FASTLSTM_INLINE void add_square(const T* const* a, int64_t k, int64_t begin, int64_t end,
                                const UnpackedColumns& columns, Vec<A> (&sum)[R]) {
  using Step = DotStep<T>;
  constexpr int L = Vec<A>::lanes, P = Step::terms_per_lane;
  Vec<A> x[L];
  auto* column = static_cast<const T*>(columns.first) + k;
#pragma GCC unroll 16
  for (int l = 0; l < L; ++l) {
    x[l] = Step::load_first(column, end);
    if (l + 1 < columns.count) column += columns.stride;  // otherwise repeats the last column
  }
  transpose_square(x);
#pragma GCC unroll 16
  for (int l = 0; l < L; ++l) {
    if (l * P < begin) continue;
    if (l * P >= end) return;
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const T* const terms = a[r] + k + l * P;
      const Vec<A> row = l * P + P <= end ? Step::template broadcast<P>(terms)
                                          : Step::template broadcast<1>(terms);
      sum[r] = Step::multiply_add(row, x[l], sum[r]);
    }
  }
}

// Prefetches the terms that lie some cache lines behind term k of each column. Behind the last
// term, at `end`, they are the terms of the columns at `next`.
template <typename A, typename T>
FASTLSTM_INLINE void prefetch_square(const UnpackedColumns& columns, const T* next, int64_t k,
                                     int64_t end) {
  constexpr int64_t kTermsAhead = 1024 / sizeof(T);
  const int64_t ahead = k + kTermsAhead;
  auto* from = ahead < end ? static_cast<const T*>(columns.first) + ahead : next + (ahead - end);
#pragma GCC unroll 16
  for (int l = 0; l < Vec<A>::lanes; ++l, from += columns.stride) __builtin_prefetch(from, 0, 2);
}

// Multiplies R rows by V vectors of columns.
template <typename T, typename A, int R, int V>
static void multiply_unpacked_tile(const PanelProduct& p, const UnpackedColumns& columns,
                                   const void* next, Int<R>, Int<V>, int64_t first_row) {
  constexpr int L = Vec<A>::lanes, square_terms = L * DotStep<T>::terms_per_lane;
  const T* a[R];
  UnpackedColumns vector[V];
  Vec<A> sum[V][R] = {};
  for (int r = 0; r < R; ++r) a[r] = static_cast<const T*>(p.a[first_row + r]);
  for (int v = 0; v < V; ++v)
    vector[v] = {static_cast<const T*>(columns.first) + v * L * columns.stride, columns.stride,
                 columns.count - v * L};
  const int64_t end = p.k_begin + p.K;
  for (int64_t first = p.k_begin; first < end; first += kTermsPerPartialSum) {
    const int64_t stop = smaller(end, first + kTermsPerPartialSum);
    Vec<A> partial[V][R] = {};
    int64_t k = first;
    for (; k + square_terms <= stop; k += square_terms) {
      const bool begins_line = (k - first) % (64 / sizeof(T)) == 0;
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) {
        const T* const next_vector = static_cast<const T*>(next) + v * L * columns.stride;
        if (begins_line) prefetch_square<A>(vector[v], next_vector, k, end);
        add_square(a, k, 0, square_terms, vector[v], partial[v]);
      }
    }
    // If possible the last square ends at the last term. Terms that were added before are skipped.
    const bool fills_square = DotStep<T>::terms_per_lane == 1 && stop - p.k_begin >= square_terms;
    const int64_t start = fills_square ? stop - square_terms : k;
    for (int v = 0; v < V; ++v) {
      if (k < stop) add_square(a, start, k - start, stop - start, vector[v], partial[v]);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r)
        sum[v][r] = first == p.k_begin ? partial[v][r] : sum[v][r] + partial[v][r];
    }
  }
  const auto put = [&](auto c) {
    for (int v = 0; v < V; ++v)
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r)
        put_sums(p, sum[v][r], static_cast<decltype(c)*>(p.c[first_row + r]),
                 v * columns.vectors_apart);
  };
  p.c_is_16_bit ? put(T()) : put(A());
}

// GemmFunctions::multiply_unpacked_columns, at most R rows or V vectors at a time.
template <int R, int V, typename T, typename A>
static void multiply_unpacked_columns(const PanelProduct& p, const UnpackedColumns& columns,
                                      const void* next) {
  if (p.rows == 1)
    return with_count<V>((columns.count - 1) / Vec<A>::lanes + 1, [&](auto vectors) {
      multiply_unpacked_tile<T, A>(p, columns, next, Int<1>(), vectors, 0);
    });
  for_row_tiles<R>(p.rows, [&](auto rows, int64_t first_row) {
    multiply_unpacked_tile<T, A>(p, columns, next, rows, Int<1>(), first_row);
  });
}

// The terms (rows of the matrix) that are multiplied at a time, while the next are prefetched.
constexpr int64_t kTermsAtATime = 16;

// Adds the products of `terms` terms from term k on to the sums of a tile, or to zeros if
// `from_zeros`. `matrix` points to term k, and terms lie `stride` elements apart.
template <typename A, typename T, int R, int V>
FASTLSTM_INLINE void add_to_tile(const PanelProduct& p, int64_t k, int64_t terms, const T* matrix,
                                 int64_t stride, A* sums, bool from_zeros, Int<R>, Int<V>,
                                 int64_t first_row) {
  constexpr int L = Vec<A>::lanes;
  const int64_t width = p.shape.vectors * L;
  Tile<R, V, V, A, /*from_memory=*/true> tile{
      0, {}, stride, first_row == 0 ? kTermsAtATime * stride * int64_t(sizeof(T)) : 0};
  const T* a[R];
  sums += first_row * width;
  for (int r = 0; r < R; ++r) a[r] = static_cast<const T*>(p.a[first_row + r]);
  tile.for_each([&](int r, int v) {
    tile.sum[r][v] = from_zeros ? Vec<A>(A(0)) : Vec<A>::load(sums + r * width + v * L);
  });
  tile.add(a, k, k + terms, matrix, nullptr);
  tile.for_each([&](int r, int v) { tile.sum[r][v].store(sums + r * width + v * L); });
}

// Calls add_to_tile for all rows, and for V vectors of columns from column n on. They are packed
// first if a lane holds two terms, or if the last vector is incomplete, since memory after the last
// column must not be read.
template <int R, typename T, typename A, int V>
FASTLSTM_INLINE void add_matrix_rows(const PanelProduct& p, const UnpackedColumns& columns,
                                     int64_t k, int64_t terms, int64_t n, A* sums, bool from_zeros,
                                     Int<V> vectors) {
  constexpr int L = Vec<A>::lanes;
  const T* matrix = static_cast<const T*>(columns.first) + k * columns.stride + n;
  int64_t stride = columns.stride;
  T panel[kTermsAtATime * V * L];
  const int64_t count = smaller(columns.count - n, V * L);
  if (DotStep<T>::terms_per_lane > 1 || count < V * L) {
    const void* rows[kTermsAtATime];
    for (int64_t i = 0; i < terms; ++i) {  // tiles then read the panel, so this prefetches for them
      rows[i] = matrix + i * stride;
      const T* const next = matrix + (i + kTermsAtATime) * stride;
      for (int v = 0; v < V; ++v) __builtin_prefetch(next + v * L, 0, 2);
    }
    pack<T>({rows, false}, 0, terms, {0, count, V}, panel);
    matrix = panel, stride = V * L;
  }
  for_row_tiles<R>(p.rows, [&](auto rows, int64_t first_row) {
    add_to_tile(p, k, terms, matrix, stride, sums, from_zeros, rows, vectors, first_row);
  });
}

// GemmFunctions::multiply_unpacked_rows. `buffer` has the sums, then partial sums.
template <int R, int V, typename T, typename A>
static void multiply_unpacked_rows(const PanelProduct& p, const UnpackedColumns& columns,
                                   void* buffer) {
  constexpr int L = Vec<A>::lanes;
  const int64_t end = p.k_begin + p.K, width = p.shape.vectors * L;
  A *const sums = static_cast<A*>(buffer), *const partial = sums + p.rows * width;
  for (int64_t first = p.k_begin; first < end; first += kTermsPerPartialSum) {
    const int64_t stop = smaller(end, first + kTermsPerPartialSum);
    A* const to = first == p.k_begin ? sums : partial;
    for (int64_t k = first; k < stop; k += kTermsAtATime) {
      const int64_t terms = smaller(stop - k, kTermsAtATime);
      for (int64_t n = 0; n < width; n += V * L)
        with_count<V>(smaller((width - n) / L, V), [&](auto vectors) {
          add_matrix_rows<R, T>(p, columns, k, terms, n, to + n, k == first, vectors);
        });
    }
    for (int64_t n = 0; to == partial && n < p.rows * width; n += L)
      (Vec<A>::load(sums + n) + Vec<A>::load(partial + n)).store(sums + n);
  }
  p.c_is_16_bit ? put_rows<A, T>(p, sums, width) : put_rows<A, A>(p, sums, width);
}

}  // namespace fastlstm::FASTLSTM_ISA
