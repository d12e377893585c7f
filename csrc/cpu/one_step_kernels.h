// A single step from unpacked weights: included by one source file per instruction set.
//
// Each tile takes the dot products of R rows with the four gate rows of one unit, whose vectors lie
// along k and are loaded once for all rows; the sums over lanes follow at the end. Few rows wait
// for the weights to come from memory, many for the multipliers.
#pragma once
#include "../lstm_math.h"
#include "tiled_params.h"
#include "tiles.h"
#include "vec.h"

namespace fastlstm {
namespace FASTLSTM_ISA {

template <int width, typename A>
FASTLSTM_HD A sum_of_lanes(const Vec<A>& x) {
  if constexpr (width == 0) {
    return x.v[0];
  } else {
    typename Registers<A>::Bits swapped;
    for (int l = 0; l < Vec<A>::lanes; ++l) swapped[l] = l ^ width;
    return sum_of_lanes<width / 2>(x + Vec<A>(shuffle(x.v, x.v, swapped)));
  }
}

// `count` < lanes elements, then zeros.
template <typename A>
FASTLSTM_HD Vec<A> load_padded(const A* from, int64_t count) {
  A part[Vec<A>::lanes] = {};
  for (int64_t i = 0; i < count; ++i) part[i] = from[i];
  return Vec<A>::load(part);
}

template <int R, typename A>
struct DotTile {
  Vec<A> sum[R][4];

  FASTLSTM_HD void add(const A* const (&a)[R], const A* const (&w)[4], int64_t K) {
    constexpr int L = Vec<A>::lanes;
    int64_t k = 0;
    for (; k + L <= K; k += L) {
      Vec<A> b[4];
#pragma GCC unroll 4
      for (int g = 0; g < 4; ++g) b[g] = Vec<A>::load(w[g] + k);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const Vec<A> x = Vec<A>::load(a[r] + k);
#pragma GCC unroll 4
        for (int g = 0; g < 4; ++g) sum[r][g] = sum[r][g] + x * b[g];
      }
    }
    if (k == K) return;
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int g = 0; g < 4; ++g)
        sum[r][g] = sum[r][g] + load_padded(a[r] + k, K - k) * load_padded(w[g] + k, K - k);
  }
};

constexpr int kOneStepRows = 24;

// Pre-activations of one unit for R rows, into pre[row][gate][lane].
template <int R, typename A>
static void dot_tile(const OneStep<A>& s, const OneStepRow<A>* row, int64_t unit, A* pre) {
  DotTile<R, A> tile;
  const A *x[R], *h[R], *w_ih[4], *w_hh[4];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    x[r] = row[r].x, h[r] = row[r].h_prev;
#pragma GCC unroll 4
    for (int g = 0; g < 4; ++g) tile.sum[r][g] = Vec<A>(A(0));
  }
  for (int g = 0; g < 4; ++g) {
    w_ih[g] = s.w_ih + (g * s.hidden_size + unit) * s.input_size;
    w_hh[g] = s.w_hh + (g * s.hidden_size + unit) * s.hidden_size;
  }
  tile.add(x, w_ih, s.input_size);
  tile.add(h, w_hh, s.hidden_size);
  for (int r = 0; r < R; ++r)
    for (int g = 0; g < 4; ++g) {
      const int64_t at = g * s.hidden_size + unit;
      const A bias = s.b_ih ? s.b_ih[at] + s.b_hh[at] : A(0);
      pre[(r * 4 + g) * Vec<A>::lanes] = sum_of_lanes<Vec<A>::lanes / 2>(tile.sum[r][g]) + bias;
    }
}

template <typename A>
static void one_step(const OneStep<A>& s, const OneStepRow<A>* row, int64_t rows, int64_t begin,
                     int64_t end) {
  constexpr int L = Vec<A>::lanes;
  for (int64_t first_row = 0; first_row < rows; first_row += kOneStepRows) {
    const int64_t count = rows - first_row < kOneStepRows ? rows - first_row : kOneStepRows;
    for (int64_t unit = begin; unit < end; unit += L) {
      alignas(64) A pre[kOneStepRows * 4 * L] = {};
      const int64_t units = end - unit < L ? end - unit : L;
      for (int64_t u = 0; u < units; ++u)
        for_row_tiles(count, [&](auto R, int64_t r) {
          dot_tile<decltype(R)::value>(s, row + first_row + r, unit + u, pre + r * 4 * L + u);
        });
      for (int64_t r = 0; r < count; ++r) {
        const OneStepRow<A>& out = row[first_row + r];
        const A* p = pre + r * 4 * L;
        const Gates<Vec<A>> gates =
            activate(Gates<Vec<A>>{Vec<A>::load(p), Vec<A>::load(p + L), Vec<A>::load(p + 2 * L),
                                   Vec<A>::load(p + 3 * L)});
        const Vec<A> c = next_cell(gates, units == L ? Vec<A>::load(out.c_prev + unit)
                                                     : load_padded(out.c_prev + unit, units));
        A h_part[L], c_part[L];
        hidden(gates.o, c).store(h_part);
        c.store(c_part);
        for (int64_t u = 0; u < units; ++u)
          out.h[unit + u] = h_part[u], out.c[unit + u] = c_part[u];
      }
    }
  }
}

}  // namespace FASTLSTM_ISA
}  // namespace fastlstm
