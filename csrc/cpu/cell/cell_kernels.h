// The kernels of the cell equations, on vectors of units. Included once for each target. Arithmetic
// bounds the forward kernel: five exponentials and five divisions for each unit. Memory bounds the
// backward kernel: it reads or writes about ten numbers for each unit.
#pragma once
#include "cpu/cell/cell.h"
#include "cpu/vec.h"
#include "equations/lstm_math.h"

namespace fastlstm::FASTLSTM_ISA {

// The columns [first, first + count) of a row of any dtype, as a vector of at least `count` lanes.
template <typename A>
struct Columns {
  int64_t first, count;

  template <typename T>
  FASTLSTM_INLINE Vec<A> load(const T* row) const {
    Vec<A> x;
    FASTLSTM_ISA::load(row + first, x, count);
    return x;
  }
  template <typename T>
  FASTLSTM_INLINE void store(const Vec<A>& x, T* row) const {
    FASTLSTM_ISA::store(x, row + first, count);
  }
  template <typename T>
  FASTLSTM_INLINE void store_gates(const Gates<Vec<A>>& gates, T* row, int64_t stride) const {
    store(gates.i, row), store(gates.f, row + stride);
    store(gates.g, row + 2 * stride), store(gates.o, row + 3 * stride);
  }
};

// Computes one vector of units of a row. The pre-activations are x + h, both [4][gate_lanes].
template <typename T, typename A>
FASTLSTM_INLINE void forward_vector(const ForwardRow<T>& row, const Columns<A>& columns,
                                    int64_t hidden_size, const A* x, const A* h,
                                    int64_t gate_lanes) {
  const auto pre = [&](int64_t gate) {
    return Vec<A>::load(x + gate * gate_lanes) + Vec<A>::load(h + gate * gate_lanes);
  };
  const auto gates = activate(Gates<Vec<A>>{pre(0), pre(1), pre(2), pre(3)});
  const Vec<A> c = next_cell(gates, columns.load(row.c_prev));
  columns.store(c, row.c);
  columns.store(hidden_state(gates.o, c), row.h);
  if (row.gates) columns.store_gates(gates, row.gates, hidden_size);
}

// Computes the gradients of one vector of units of a row. from_product: see CellKernels::backward.
template <typename T, typename A>
FASTLSTM_INLINE void backward_vector(const BackwardRow<T>& row, const Columns<A>& columns,
                                     int64_t hidden_size, Vec<A> from_product) {
  const Vec<A> dh = from_product + (columns.load(row.d_output) + columns.load(row.d_h_n));
  Vec<A> dc = columns.load(row.dc) + columns.load(row.d_cells);
  const auto gate = [&](int k) { return columns.load(row.gates + k * hidden_size); };
  const auto d_pre =
      step_backward(Gates<Vec<A>>{gate(0), gate(1), gate(2), gate(3)}, columns.load(row.c_prev),
                    columns.load(row.c), dh, dc, row.reset);
  columns.store(dc, row.dc);
  columns.store_gates(d_pre, row.d_gates, hidden_size);
}

template <typename A>
FASTLSTM_INLINE void prefetch_units(const A* row, const Units& units) {
  constexpr int64_t line = 64 / sizeof(A);
  for (int64_t u = 0; u < units.count; u += line) __builtin_prefetch(row + units.first + u);
}

template <typename T>
static void prefetch_forward(const ForwardRow<T>* rows, int64_t count, const Units& units) {
  for (int64_t r = 0; r < count; ++r) {
    prefetch_units(rows[r].c_prev, units);
    if (rows[r].x_gates)
      prefetch_units(rows[r].x_gates, {4 * units.first, 4 * Vec<State_t<T>>::lanes, 0});
  }
}

template <typename T>
static void prefetch_backward(const BackwardRow<T>* rows, int64_t count, const Units& units) {
  for (int64_t r = 0; r < count; ++r) {
    prefetch_units(rows[r].d_output, units);
    prefetch_units(rows[r].c, units), prefetch_units(rows[r].c_prev, units);
    for (int64_t gate = 0; gate < 4; ++gate)
      prefetch_units(rows[r].gates + gate * units.hidden_size, units);
  }
}

template <typename T, typename A = State_t<T>>
static void forward_cells(const ForwardRow<T>* rows, int64_t count, const StepSums<A>& sums,
                          const Units& units) {
  constexpr int L = Vec<A>::lanes;
  for (int64_t r = 0; r < count; ++r) {
    const A* const h = sums.h + r * sums.stride;
    const A* const x = sums.x ? sums.x + r * sums.stride : rows[r].x_gates + 4 * units.first;
    if (units.count == L)  // a constant count, so that the compiler needs no masks
      forward_vector<T, A>(rows[r], {units.first, L}, units.hidden_size, x, h, L);
    else
      forward_vector<T, A>(rows[r], {units.first, units.count}, units.hidden_size, x, h,
                           sums.gate_lanes);
  }
}

template <typename T, typename A = State_t<T>>
static void backward_cells(const BackwardRow<T>* rows, int64_t count, const A* sums, int64_t stride,
                           const Units& units) {
  constexpr int L = Vec<A>::lanes;
  for (int64_t r = 0; r < count; ++r)
    for (int64_t v = 0; v < units.count; v += L) {
      const Vec<A> from_product = Vec<A>::load(sums + r * stride + v);
      const int64_t column = units.first + v, n = units.count - v;
      if (n >= L)
        backward_vector<T, A>(rows[r], {column, L}, units.hidden_size, from_product);
      else
        backward_vector<T, A>(rows[r], {column, n}, units.hidden_size, from_product);
    }
}

template <typename T>
constexpr CellKernels<T> cell_kernels = {prefetch_forward<T>, prefetch_backward<T>,
                                         forward_cells<T>, backward_cells<T>};

}  // namespace fastlstm::FASTLSTM_ISA
