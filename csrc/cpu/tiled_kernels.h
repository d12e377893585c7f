// Register tiles of the tiled engine: included by one source file per instruction set.
//
// A tile is R rows x V vectors of columns. Its accumulators stay in registers over the whole sum
// over k; each step loads V vectors of the packed panel and broadcasts R scalars. The sum over k
// always runs in the same order, whatever R and V, so a result does not depend on the other rows,
// on the partition or on the number of threads. In `forward` the four vectors of a tile are the
// four gates of the same units, so the cell equations follow in registers. With AVX-512 a tile of
// 6 x 4 uses 24 of the 32 registers and needs 10 loads for 24 multiply-adds: arithmetic bounds it.
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
FASTLSTM_HD void keep_in_register(Vec<A>& x) {
#if defined(__x86_64__) && defined(__AVX512F__)
  asm("" : "+v"(x.v));
#elif defined(__x86_64__)
  asm("" : "+x"(x.v));
#endif
}

template <int R, int V, typename A>
struct Tile {
  static constexpr int L = Vec<A>::lanes;
  Vec<A> sum[R][V];

  FASTLSTM_HD void multiply_add(const A* const* a, int64_t K, const A* panel) {
    for (int64_t k = 0; k < K; ++k, panel += V * L) {
      Vec<A> b[V];
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) {
        b[v] = Vec<A>::load(panel + v * L);
        keep_in_register(b[v]);
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
  FASTLSTM_HD void multiply_add(const bfloat16* const* a, int64_t K, const bfloat16* panel) {
    for (int64_t k = 0; k + 1 < K; k += 2, panel += 2 * V * L)
      add_pair(
          [&](int r) {
            uint32_t pair;
            std::memcpy(&pair, a[r] + k, sizeof pair);
            return pair;
          },
          panel);
    if (K % 2) add_pair([&](int r) { return uint32_t(a[r][K - 1].bits); }, panel);
  }

  template <typename Pair>
  FASTLSTM_HD void add_pair(const Pair& pair, const bfloat16* panel) {
    Vec<A> b[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      std::memcpy(&b[v].v, panel + 2 * v * L, sizeof b[v].v);
      keep_in_register(b[v]);
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

template <int R, int V, typename T, typename A>
static void multiply_tile(const T* const* a, int64_t k_begin, int64_t K, const T* panel,
                          int64_t column, A* const* c, bool accumulate, const A* bias) {
  constexpr int L = Vec<A>::lanes;
  Tile<R, V, A> tile;
  const T* rows[R];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    rows[r] = a[r] + k_begin;
    const A* from = accumulate ? c[r] + column : bias + column;
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) tile.sum[r][v] = Vec<A>::load(from + v * L);
  }
  tile.multiply_add(rows, K, panel);
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) tile.sum[r][v].store(c[r] + column + v * L);
}

template <typename T, typename A>
FASTLSTM_HD void store_gates(T* to, int64_t stride, const Gates<Vec<A>>& gates) {
  store(gates.i, to);
  store(gates.f, to + stride);
  store(gates.g, to + 2 * stride);
  store(gates.o, to + 3 * stride);
}

template <int R, typename T, typename A>
static void forward_tile(const ForwardRow<T, A>* row, int64_t K, const T* panel, int64_t unit,
                         int64_t hidden_size) {
  Tile<R, 4, A> tile;
  const T* rows[R];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    rows[r] = row[r].h_prev;
#pragma GCC unroll 4
    for (int g = 0; g < 4; ++g)
      tile.sum[r][g] = Vec<A>::load(row[r].x_gates + g * hidden_size + unit);
  }
  tile.multiply_add(rows, K, panel);
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    const Gates<Vec<A>> gates =
        activate(Gates<Vec<A>>{tile.sum[r][0], tile.sum[r][1], tile.sum[r][2], tile.sum[r][3]});
    const Vec<A> c = next_cell(gates, Vec<A>::load(row[r].c_prev + unit));
    c.store(row[r].c + unit);
    store(hidden(gates.o, c), row[r].h + unit);
    store_gates(row[r].gates + unit, hidden_size, gates);
  }
}

template <typename T, typename A>
FASTLSTM_HD void backward_vector(const BackwardRow<T, A>& row, int64_t unit, int64_t hidden_size,
                                 const Vec<A>& from_next) {
  const auto at = [unit](const auto* from) {
    Vec<A> x;
    load(from + unit, x);
    return x;
  };
  const Gates<Vec<A>> gates{at(row.gates), at(row.gates + hidden_size),
                            at(row.gates + 2 * hidden_size), at(row.gates + 3 * hidden_size)};
  const Vec<A> dh = from_next + (at(row.d_output) + at(row.d_h_n));
  Vec<A> dc = at(row.dc) + at(row.d_cells);
  const Gates<Vec<A>> d_pre = cell_backward(gates, at(row.c_prev), at(row.c), dh, dc);
  (row.reset ? Vec<A>(A(0)) : dc).store(row.dc + unit);
  store_gates(row.d_gates + unit, hidden_size, d_pre);
}

// The panel is cut along k so that a piece stays in the second-level cache while all rows pass.
constexpr int64_t kBackwardPiece = 1024;

template <int R, int V, typename T, typename A>
static void backward_tile(const BackwardRow<T, A>* row, int64_t k_begin, int64_t K, int64_t all_K,
                          const T* panel, int64_t unit, int64_t hidden_size, const T* zeros,
                          A* partial) {
  constexpr int L = Vec<A>::lanes;
  Tile<R, V, A> tile;
  const T* rows[R];
  bool any = false;
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    any |= row[r].d_gates_next != nullptr;
    rows[r] = (row[r].d_gates_next ? row[r].d_gates_next : zeros) + k_begin;
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v)
      tile.sum[r][v] = k_begin ? Vec<A>::load(partial + (r * V + v) * L) : Vec<A>(A(0));
  }
  if (any) tile.multiply_add(rows, K, panel);
  const bool last = k_begin + K == all_K;
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) tile.sum[r][v].store(partial + (r * V + v) * L);
  if (last)
    for (int r = 0; r < R; ++r)
      for (int v = 0; v < V; ++v)
        backward_vector(row[r], unit + v * L, hidden_size, Vec<A>::load(partial + (r * V + v) * L));
}

// A square of lanes x lanes elements transposed in registers: at each stage, rows `distance` apart
// swap the halves of their blocks of 2 * distance lanes.
template <int distance, typename A>
FASTLSTM_HD void transpose_stages(Vec<A> (&x)[Vec<A>::lanes]) {
  constexpr int L = Vec<A>::lanes;
  if constexpr (distance < L) {
    typename Registers<A>::Bits low, high;
    for (int j = 0; j < L; ++j) {
      low[j] = j & distance ? L + j - distance : j;
      high[j] = j & distance ? L + j : j + distance;
    }
#pragma GCC unroll 16
    for (int i = 0; i < L; ++i) {
      if (i & distance) continue;
      const Vec<A> a = x[i], b = x[i + distance];
      x[i] = Vec<A>(shuffle(a.v, b.v, low));
      x[i + distance] = Vec<A>(shuffle(a.v, b.v, high));
    }
    transpose_stages<2 * distance>(x);
  }
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
    transpose_stages<1>(x);
#pragma GCC unroll 16
    for (int n = 0; n < L; ++n) x[n].store(to + (k + n) * stride);
  }
  for (; k < K; ++k)
    for (int n = 0; n < L; ++n) to[k * stride + n] = from[n][k];
}

template <typename A>
static void pack(const A* const* matrix, bool transposed, int64_t k_begin, int64_t K,
                 const PanelShape& shape, A* panel) {
  constexpr int L = Vec<A>::lanes;
  const int64_t width = shape.vectors * L;
  if (!transposed) {
    for (int64_t k = 0; k < K; ++k) {
      const A* from = matrix[k_begin + k] + shape.first_column;
      A* to = panel + k * width;
      for (int64_t n = 0; n < shape.columns; ++n) to[n] = from[n];
      for (int64_t n = shape.columns; n < width; ++n) to[n] = A(0);
    }
    return;
  }
  for (int64_t n = 0; n < width; n += L) {
    const A* columns[L];
    for (int l = 0; l < L; ++l) {
      const int64_t column = n + l < shape.columns ? n + l : 0;  // any, where there is none
      columns[l] = matrix[shape.first_column + column] + k_begin;
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

#if defined(FASTLSTM_BFLOAT16_PAIRS)
// A pair of bfloat16 moves as one float: only moves, so the bits stay what they are.
FASTLSTM_HD const float* as_pairs(const bfloat16* from) {
  return reinterpret_cast<const float*>(from);
}
FASTLSTM_HD float* as_pairs(bfloat16* from) { return reinterpret_cast<float*>(from); }

static void pack(const bfloat16* const* matrix, bool transposed, int64_t k_begin, int64_t K,
                 const PanelShape& shape, bfloat16* panel) {
  constexpr int L = Vec<float>::lanes;
  const int64_t width = shape.vectors * L, pairs = K / 2;
  if (transposed) {
    for (int64_t n = 0; n < width; n += L) {
      const float* columns[L];
      for (int l = 0; l < L; ++l) {
        const int64_t column = n + l < shape.columns ? n + l : 0;  // any, where there is none
        columns[l] = as_pairs(matrix[shape.first_column + column] + k_begin);
      }
      transpose_vector(columns, pairs, as_pairs(panel) + n, width);
    }
    for (int64_t k = 2 * pairs; k < K; ++k)
      for (int64_t n = 0; n < width; ++n) {
        const int64_t column = n < shape.columns ? n : 0;
        panel[2 * (pairs * width + n)] = matrix[shape.first_column + column][k_begin + k];
        panel[2 * (pairs * width + n) + 1] = bfloat16(0.0f);
      }
  } else {
    for (int64_t k = 0; k < K; k += 2) {
      const bfloat16* even = matrix[k_begin + k] + shape.first_column;
      const bfloat16* odd = k + 1 < K ? matrix[k_begin + k + 1] + shape.first_column : nullptr;
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

static void transpose(const bfloat16* const* from, int64_t rows, int64_t begin, int64_t end,
                      bfloat16* to) {
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
#endif

// `count` elements of each of `parts` parts, between rows of different part strides.
template <typename A>
static void copy(const A* from, int64_t from_stride, A* to, int64_t to_stride, int64_t count,
                 int parts) {
  for (int p = 0; p < parts; ++p)
    for (int64_t i = 0; i < count; ++i) to[p * to_stride + i] = from[p * from_stride + i];
}

// The tiles work on whole vectors. At a ragged right edge they work on padded copies of the rows.
template <typename T, typename A>
static void multiply(const T* const* a, int64_t rows, int64_t k_begin, int64_t K, const T* panel,
                     const PanelShape& shape, A* const* c, bool accumulate, const A* bias) {
  constexpr int64_t kWidth = 4 * Vec<A>::lanes;
  static const A no_bias[kWidth] = {};
  const bool whole = shape.columns == shape.vectors * Vec<A>::lanes;
  A padded_bias[kWidth] = {};
  if (bias && !whole) copy(bias + shape.first_column, 0, padded_bias, 0, shape.columns, 1);
  const A* from = !bias ? no_bias : whole ? bias + shape.first_column : padded_bias;
  with_vectors(shape.vectors, [&](auto V) {
    for_row_tiles(rows, [&](auto R, int64_t first) {
      constexpr int kR = decltype(R)::value;
      A edge[kR][kWidth];
      A* c_rows[kR];
      for (int r = 0; r < kR; ++r) {
        A* real = c[first + r] + shape.first_column;
        c_rows[r] = whole ? real : edge[r];
        if (!whole && accumulate) copy(real, 0, edge[r], 0, shape.columns, 1);
      }
      multiply_tile<kR, decltype(V)::value>(a + first, k_begin, K, panel, 0, c_rows, accumulate,
                                            from);
      if (!whole)
        for (int r = 0; r < kR; ++r)
          copy(edge[r], 0, c[first + r] + shape.first_column, 0, shape.columns, 1);
    });
  });
}

template <typename T, typename A>
static void forward(const ForwardRow<T, A>* row, int64_t rows, int64_t K, const T* panel,
                    int64_t unit, int64_t units, int64_t hidden_size) {
  constexpr int64_t L = Vec<A>::lanes;
  if (units == L) {
    for_row_tiles(rows, [&](auto R, int64_t first) {
      forward_tile<decltype(R)::value>(row + first, K, panel, unit, hidden_size);
    });
    return;
  }
  for (int64_t first = 0; first < rows; first += kRows) {
    const int64_t count = rows - first < kRows ? rows - first : kRows;
    A x_gates[kRows][4 * L] = {}, c_prev[kRows][L] = {}, c[kRows][L];
    T gates[kRows][4 * L], h[kRows][L];
    ForwardRow<T, A> padded[kRows];
    for (int64_t r = 0; r < count; ++r) {
      const ForwardRow<T, A>& real = row[first + r];
      padded[r] = {real.h_prev, x_gates[r], gates[r], c_prev[r], c[r], h[r]};
      copy(real.x_gates + unit, hidden_size, x_gates[r], L, units, 4);
      copy(real.c_prev + unit, 0, c_prev[r], 0, units, 1);
    }
    forward(padded, count, K, panel, 0, L, L);
    for (int64_t r = 0; r < count; ++r) {
      const ForwardRow<T, A>& real = row[first + r];
      copy(gates[r], L, real.gates + unit, hidden_size, units, 4);
      copy(c[r], 0, real.c + unit, 0, units, 1);
      copy(h[r], 0, real.h + unit, 0, units, 1);
    }
  }
}

template <typename T, typename A>
static void backward(const BackwardRow<T, A>* row, int64_t rows, int64_t K, const T* panel,
                     const PanelShape& shape, int64_t hidden_size, const T* zeros) {
  constexpr int64_t kRowsAtOnce = 16 * kRows, kWidth = 4 * Vec<A>::lanes;
  const int64_t width = shape.vectors * Vec<A>::lanes, units = shape.columns;
  const int64_t unit = shape.first_column;
  if (units == width) {
    alignas(64) A partial[kRowsAtOnce * kWidth];
    with_vectors(shape.vectors, [&](auto V) {
      for (int64_t begin = 0; begin < rows; begin += kRowsAtOnce) {
        const int64_t count = rows - begin < kRowsAtOnce ? rows - begin : kRowsAtOnce;
        for (int64_t k = 0; k < K; k += kBackwardPiece) {
          const int64_t piece = K - k < kBackwardPiece ? K - k : kBackwardPiece;
          for_row_tiles(count, [&](auto R, int64_t first) {
            backward_tile<decltype(R)::value, decltype(V)::value>(
                row + begin + first, k, piece, K, panel + k * width, unit, hidden_size, zeros,
                partial + first * width);
          });
        }
      }
    });
    return;
  }
  for (int64_t first = 0; first < rows; first += kRows) {
    const int64_t count = rows - first < kRows ? rows - first : kRows;
    T values[kRows][10][kWidth] = {};  // d_output, d_h_n, gates (4), d_gates (4)
    A states[kRows][4][kWidth] = {};   // d_cells, c, c_prev, dc
    BackwardRow<T, A> padded[kRows];
    for (int64_t r = 0; r < count; ++r) {
      const BackwardRow<T, A>& real = row[first + r];
      auto& value = values[r];
      auto& state = states[r];
      padded[r] = {real.d_gates_next, value[0], value[1], state[0], value[2],
                   state[1],          state[2], state[3], value[6], real.reset};
      copy(real.d_output + unit, 0, value[0], 0, units, 1);
      copy(real.d_h_n + unit, 0, value[1], 0, units, 1);
      copy(real.gates + unit, hidden_size, value[2], kWidth, units, 4);
      copy(real.d_cells + unit, 0, state[0], 0, units, 1);
      copy(real.c + unit, 0, state[1], 0, units, 1);
      copy(real.c_prev + unit, 0, state[2], 0, units, 1);
      copy(real.dc + unit, 0, state[3], 0, units, 1);
    }
    backward(padded, count, K, panel, {0, width, shape.vectors}, kWidth, zeros);
    for (int64_t r = 0; r < count; ++r) {
      const BackwardRow<T, A>& real = row[first + r];
      copy(padded[r].dc, 0, real.dc + unit, 0, units, 1);
      copy(padded[r].d_gates, kWidth, real.d_gates + unit, hidden_size, units, 4);
    }
  }
}

}  // namespace FASTLSTM_ISA
}  // namespace fastlstm
