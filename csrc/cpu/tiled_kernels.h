// Register tiles of the tiled engine: included by one source file per instruction set.
//
// A tile is R rows x V vectors of columns. Its accumulators stay in registers over kTerms terms of
// the sum over k; each step loads V vectors of the packed panel and broadcasts R scalars. The sum
// over k always runs in the same order, whatever R and V, so a result does not depend on the other
// rows, on the partition or on the number of threads (but see `zeros` if W_hh is not finite). In
// `forward` the four vectors of a tile are the four gates of the same units, so the cell equations
// follow in registers. With AVX-512 a tile of 6 x 4 uses 24 of the 32 registers and needs 10 loads
// for 24 multiply-adds: arithmetic bounds it.
//
// Only plain loops and always-inline functions here, as in row_kernels.h.
#pragma once
#include "../lstm_math.h"
#include "tiled_params.h"
#include "tiles.h"
#include "vec.h"

namespace fastlstm {
namespace FASTLSTM_ISA {

// Keeps the compiler from reloading a panel vector for every row, which makes small tiles wait for
// the cache instead of the multipliers.
template <typename A>
FASTLSTM_HD Vec<A> keep_in_register(Vec<A> x) {
#if defined(__x86_64__) && defined(__AVX512F__)
  asm("" : "+v"(x.v));
#elif defined(__x86_64__)
  asm("" : "+x"(x.v));
#endif
  return x;
}

// So many terms are summed from zero before they are added to the sum: the rounding errors of a
// sum of K terms then grow with kTerms + K / kTerms instead of K.
constexpr int64_t kTerms = 256;

template <int R, int V, typename A>
struct Tile {
  static constexpr int L = Vec<A>::lanes;
  Vec<A> sum[R][V];

  // sum = the products of K terms.
  template <typename T>
  FASTLSTM_HD void multiply(const T* const* a, int64_t K, const T* panel, Ahead* ahead = nullptr) {
    clear();
    add(a, 0, K < kTerms ? K : kTerms, panel, ahead);
    for (int64_t k = kTerms; k < K; k += kTerms) {
      Tile piece;
      piece.clear();
      piece.add(a, k, K - k < kTerms ? K : k + kTerms, panel + k * V * L, ahead);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) sum[r][v] = sum[r][v] + piece.sum[r][v];
    }
  }

  FASTLSTM_HD void clear() {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sum[r][v] = Vec<A>(A(0));
  }

  template <typename T>
  FASTLSTM_HD void add(const T* const* a, int64_t k, int64_t end, const T* panel, Ahead* ahead) {
    for (; ahead && k + kTermsAhead < end; k += kTermsAhead, panel += kTermsAhead * V * L) {
      ahead->fetch();
      add(a, k, k + kTermsAhead, panel);
    }
    add(a, k, end, panel);
  }

  FASTLSTM_HD void add(const A* const* a, int64_t k, int64_t end, const A* panel) {
    for (; k < end; ++k, panel += V * L) {
      Vec<A> b[V];
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) {
        b[v] = keep_in_register(Vec<A>::load(panel + v * L));
      }
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const Vec<A> x(a[r][k]);
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) sum[r][v] = fused(x, b[v], sum[r][v]);
      }
    }
  }

#if defined(FASTLSTM_BFLOAT16_PAIRS)
  // Two k at a time: products of bfloat16 are summed in float32.
  FASTLSTM_HD void add(const bfloat16* const* a, int64_t k, int64_t end, const bfloat16* panel) {
    for (; k + 1 < end; k += 2, panel += 2 * V * L)
      add_pair(
          [&](int r) {
            uint32_t pair;
            std::memcpy(&pair, a[r] + k, sizeof pair);
            return pair;
          },
          panel);
    if (k < end) add_pair([&](int r) { return uint32_t(a[r][k].bits); }, panel);
  }

  template <typename Pair>
  FASTLSTM_HD void add_pair(const Pair& pair, const bfloat16* panel) {
    Vec<A> b[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      std::memcpy(&b[v].v, panel + 2 * v * L, sizeof b[v].v);
      b[v] = keep_in_register(b[v]);
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const __m512i x = _mm512_set1_epi32(static_cast<int>(pair(r)));
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v)
        sum[r][v].v = _mm512_dpbf16_ps(sum[r][v].v, (__m512bh)x, (__m512bh)b[v].v);
    }
  }
#endif
};

// What a tile needs after its product comes into the cache meanwhile.
template <int count, typename A>
FASTLSTM_HD void prefetch(const A* from) {
#pragma GCC unroll 4
  for (int v = 0; v < count; ++v) __builtin_prefetch(from + v * FASTLSTM_VECTOR_BYTES / sizeof(A));
}

// Columns [column, column + columns) of c; only the last of the V vectors may be cut off.
template <int R, int V, typename T, typename A, typename C>
static void multiply_tile(const T* const* a, int64_t k_begin, int64_t K, const T* panel,
                          int64_t column, int64_t columns, C* const* c, bool accumulate,
                          const A* bias, Ahead* ahead) {
  constexpr int L = Vec<A>::lanes;
  Tile<R, V, A> tile;
  const T* rows[R];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    rows[r] = a[r] + k_begin;
    prefetch<V>(c[r] + column);
  }
  tile.multiply(rows, K, panel, ahead);
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      const int64_t n = v < V - 1 ? L : columns - v * L;
      Vec<A> before(A(0));
      if (accumulate)
        load(c[r] + column + v * L, before, n);
      else if (bias)
        load(bias + column + v * L, before, n);
      store(before + tile.sum[r][v], c[r] + column + v * L, n);
    }
}

template <typename T, typename A>
FASTLSTM_HD void store_gates(T* to, int64_t stride, const Gates<Vec<A>>& gates, int64_t n) {
  store(gates.i, to, n);
  store(gates.f, to + stride, n);
  store(gates.g, to + 2 * stride, n);
  store(gates.o, to + 3 * stride, n);
}

// n <= lanes units from the products [4][lanes] of a row.
template <typename T, typename A>
FASTLSTM_HD void forward_vector(const ForwardRow<T, A>& row, int64_t unit, int64_t n,
                                int64_t hidden_size, const A* products) {
  const auto at = [unit, n](const auto* from) {
    Vec<A> x;
    load(from + unit, x, n);
    return x;
  };
  const auto pre = [&](int gate) {
    return at(row.x_gates + gate * hidden_size) + Vec<A>::load(products + gate * Vec<A>::lanes);
  };
  const Gates<Vec<A>> gates = activate(Gates<Vec<A>>{pre(0), pre(1), pre(2), pre(3)});
  const Vec<A> c_prev = at(row.c_prev);
  Vec<A> c = next_cell(gates, c_prev), h = hidden(gates.o, c);
  if (row.zoneout_h) h = zoneout(at(row.zoneout_h), at(row.h_before), h);
  if (row.zoneout_c) c = zoneout(at(row.zoneout_c), c_prev, c);
  store(c, row.c + unit, n);
  store(h, row.h + unit, n);
  if (row.gates) store_gates(row.gates + unit, hidden_size, gates, n);
}

template <int R, typename T, typename A>
static void forward_tile(const ForwardRow<T, A>* row, int64_t K, const T* panel, int64_t unit,
                         int64_t units, int64_t hidden_size, const T* zeros) {
  constexpr int L = Vec<A>::lanes;
  Tile<R, 4, A> tile;
  const T* rows[R];
  bool any = false;
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    rows[r] = row[r].h_prev;
    any |= rows[r] != zeros;
    prefetch<1>(row[r].c_prev + unit);
#pragma GCC unroll 4
    for (int g = 0; g < 4; ++g) prefetch<1>(row[r].x_gates + g * hidden_size + unit);
  }
  if (any)
    tile.multiply(rows, K, panel);
  else
    tile.clear();
  alignas(64) A products[R][4 * L];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int g = 0; g < 4; ++g) tile.sum[r][g].store(products[r] + g * L);
  for (int r = 0; r < R; ++r)
    if (units == L)
      forward_vector(row[r], unit, L, hidden_size, products[r]);
    else
      forward_vector(row[r], unit, units, hidden_size, products[r]);
}

template <typename T, typename A>
FASTLSTM_HD void backward_vector(const BackwardRow<T, A>& row, int64_t unit, int64_t n,
                                 int64_t hidden_size, Vec<A> from_next) {
  const auto at = [unit, n](const auto* from) {
    Vec<A> x;
    load(from + unit, x, n);
    return x;
  };
  const Gates<Vec<A>> gates{at(row.gates), at(row.gates + hidden_size),
                            at(row.gates + 2 * hidden_size), at(row.gates + 3 * hidden_size)};
  const Vec<A> zero(A(0)), c_prev = at(row.c_prev);
  if (row.h_mask) from_next = from_next * at(row.h_mask);
  Vec<A> dh = from_next + (at(row.d_output) + at(row.d_h_n));
  Vec<A> dc = at(row.dc) + at(row.d_cells), kept_dc = zero, c = at(row.c);
  if (row.zoneout_h) {
    dh = dh + at(row.kept_dh);
    const Vec<A> kept_dh = zoneout_backward(at(row.zoneout_h), dh);
    store(row.reset ? zero : kept_dh, row.kept_dh + unit, n);
  }
  if (row.zoneout_c) {
    kept_dc = zoneout_backward(at(row.zoneout_c), dc);
    c = next_cell(gates, c_prev);  // before zoneout
  }
  const Gates<Vec<A>> d_pre = cell_backward(gates, c_prev, c, dh, dc);
  if (row.zoneout_c) dc = dc + kept_dc;
  store(row.reset ? zero : dc, row.dc + unit, n);
  store_gates(row.d_gates + unit, hidden_size, d_pre, n);
}

// The panel is cut along k so that a piece stays in the second-level cache while all rows pass.
constexpr int64_t kBackwardPiece = 1024;

template <int R, int V, typename T, typename A>
static void backward_tile(const BackwardRow<T, A>* row, int64_t k_begin, int64_t K, int64_t all_K,
                          const T* panel, int64_t unit, int64_t units, int64_t hidden_size,
                          const T* zeros, A* partial) {
  constexpr int L = Vec<A>::lanes;
  Tile<R, V, A> tile;
  const T* rows[R];
  bool any = false;
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    any |= row[r].d_gates_next != zeros;
    rows[r] = row[r].d_gates_next + k_begin;
    if (k_begin + K < all_K) continue;
    prefetch<V>(row[r].d_output + unit);
    prefetch<V>(row[r].c + unit);
    prefetch<V>(row[r].c_prev + unit);
#pragma GCC unroll 4
    for (int g = 0; g < 4; ++g) prefetch<V>(row[r].gates + g * hidden_size + unit);
  }
  if (any)
    tile.multiply(rows, K, panel);
  else
    tile.clear();
  const bool last = k_begin + K == all_K;
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      A* const to = partial + (r * V + v) * L;
      (k_begin ? Vec<A>::load(to) + tile.sum[r][v] : tile.sum[r][v]).store(to);
    }
  if (!last) return;
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < V; ++v) {
      const Vec<A> from_next = Vec<A>::load(partial + (r * V + v) * L);
      const int64_t column = unit + v * L, n = units - v * L;
      if (n >= L)
        backward_vector(row[r], column, L, hidden_size, from_next);
      else
        backward_vector(row[r], column, n, hidden_size, from_next);
    }
}

template <typename T, typename A, typename C>
static void multiply(const T* const* a, int64_t rows, int64_t k_begin, int64_t K, const T* panel,
                     const PanelShape& shape, C* const* c, bool accumulate, const A* bias,
                     Ahead* ahead) {
  with_vectors(shape.vectors, [&](auto V) {
    for_row_tiles(rows, [&](auto R, int64_t first) {
      multiply_tile<decltype(R)::value, decltype(V)::value>(a + first, k_begin, K, panel,
                                                            shape.first_column, shape.columns,
                                                            c + first, accumulate, bias, ahead);
    });
  });
}

template <typename T, typename A>
static void forward(const ForwardRow<T, A>* row, int64_t rows, int64_t K, const T* panel,
                    int64_t unit, int64_t units, int64_t hidden_size, const T* zeros) {
  for_row_tiles(rows, [&](auto R, int64_t first) {
    forward_tile<decltype(R)::value>(row + first, K, panel, unit, units, hidden_size, zeros);
  });
}

template <typename T, typename A>
static void backward(const BackwardRow<T, A>* row, int64_t rows, int64_t K, const T* panel,
                     const PanelShape& shape, int64_t hidden_size, const T* zeros) {
  constexpr int64_t kRowsAtOnce = 16 * kRows;
  const int64_t width = shape.vectors * Vec<A>::lanes;
  alignas(64) A partial[kRowsAtOnce * 4 * Vec<A>::lanes];
  with_vectors(shape.vectors, [&](auto V) {
    for (int64_t begin = 0; begin < rows; begin += kRowsAtOnce) {
      const int64_t count = rows - begin < kRowsAtOnce ? rows - begin : kRowsAtOnce;
      for (int64_t k = 0; k < K; k += kBackwardPiece) {
        const int64_t piece = K - k < kBackwardPiece ? K - k : kBackwardPiece;
        for_row_tiles(count, [&](auto R, int64_t first) {
          backward_tile<decltype(R)::value, decltype(V)::value>(
              row + begin + first, k, piece, K, panel + k * width, shape.first_column,
              shape.columns, hidden_size, zeros, partial + first * width);
        });
      }
    }
  });
}

}  // namespace FASTLSTM_ISA
}  // namespace fastlstm
