// The kernels of the cell equations, on vectors of units. Included once for each target. Arithmetic
// bounds forward: five exponentials and five divisions a unit. Memory bounds backward: some ten
// numbers a unit.
//
// This file contains only plain loops and always-inline functions; kernels_table.h says why.
#pragma once
#include "cpu/cell/cell.h"
#include "cpu/vec.h"
#include "equations/lstm_math.h"

namespace fastlstm::FASTLSTM_ISA {

// The columns [column, column + n) of rows, which it loads as a vector and stores from a vector. n
// is at most the number of lanes. The elements of a row may have any dtype.
template <typename A>
struct Lanes {
  int64_t column, n;

  template <typename T>
  FASTLSTM_INLINE Vec<A> operator()(const T* row) const {
    Vec<A> x;
    load(row + column, x, n);
    return x;
  }
  template <typename T>
  FASTLSTM_INLINE Gates<Vec<A>> gates(const T* row, int64_t stride) const {
    return {(*this)(row), (*this)(row + stride), (*this)(row + 2 * stride),
            (*this)(row + 3 * stride)};
  }
  template <typename T>
  FASTLSTM_INLINE void put(const Vec<A>& x, T* row) const {
    store(x, row + column, n);
  }
  template <typename T>
  FASTLSTM_INLINE void put_gates(const Gates<Vec<A>>& gates, T* row, int64_t stride) const {
    put(gates.i, row), put(gates.f, row + stride);
    put(gates.g, row + 2 * stride), put(gates.o, row + 3 * stride);
  }
};

template <typename T, typename A>
FASTLSTM_INLINE void forward_vector(const ForwardRow<T>& row, const Lanes<A>& at,
                                    int64_t hidden_size, const A* x, const A* h) {
  constexpr int L = Vec<A>::lanes;
  const auto of_gate = [&](int k) { return Vec<A>::load(x + k * L) + Vec<A>::load(h + k * L); };
  const auto gates = activate(Gates<Vec<A>>{of_gate(0), of_gate(1), of_gate(2), of_gate(3)});
  const Vec<A> c = next_cell(gates, at(row.c_prev));
  at.put(c, row.c);
  at.put(hidden_state(gates.o, c), row.h);
  if (row.gates) at.put_gates(gates, row.gates, hidden_size);
}

template <typename T, typename A>
FASTLSTM_INLINE void backward_vector(const BackwardRow<T>& row, const Lanes<A>& at,
                                     int64_t hidden_size, Vec<A> from_next) {
  const Vec<A> dh = from_next + (at(row.d_output) + at(row.d_h_n));
  const Vec<A> dc = at(row.dc) + at(row.d_cells);
  const auto before =
      step_backward(at.gates(row.gates, hidden_size), at(row.c_prev), at(row.c), dh, dc, row.reset);
  at.put(before.dc, row.dc);
  at.put_gates(before.d_pre, row.d_gates, hidden_size);
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
    prefetch_units(rows[r].c, units);
    prefetch_units(rows[r].c_prev, units);
    for (int64_t gate = 0; gate < 4; ++gate)
      prefetch_units(rows[r].gates + gate * units.hidden_size, units);
  }
}

template <typename T, typename A>
static void forward_cells(const ForwardRow<T>* rows, int64_t count, const StepSums<A>& sums,
                          const Units& units) {
  constexpr int L = Vec<A>::lanes;
  for (int64_t r = 0; r < count; ++r) {
    const A* const h = sums.h + r * sums.stride;
    const A* const x = sums.x ? sums.x + r * sums.stride : rows[r].x_gates + 4 * units.first;
    if (units.count == L)  // with the constant L the compiler needs no masks
      forward_vector<T, A>(rows[r], {units.first, L}, units.hidden_size, x, h);
    else
      forward_vector<T, A>(rows[r], {units.first, units.count}, units.hidden_size, x, h);
  }
}

template <typename T, typename A>
static void backward_cells(const BackwardRow<T>* rows, int64_t count, const A* sums, int64_t stride,
                           const Units& units) {
  constexpr int L = Vec<A>::lanes;
  for (int64_t r = 0; r < count; ++r)
    for (int64_t v = 0; v < units.count; v += L) {
      const Vec<A> from_next = Vec<A>::load(sums + r * stride + v);
      const int64_t column = units.first + v, n = units.count - v;
      if (n >= L)
        backward_vector<T, A>(rows[r], {column, L}, units.hidden_size, from_next);
      else
        backward_vector<T, A>(rows[r], {column, n}, units.hidden_size, from_next);
    }
}

}  // namespace fastlstm::FASTLSTM_ISA
