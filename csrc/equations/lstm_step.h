// One row of one step: loads, the cell equations, stores. Both devices call step_row(), of which
// there is one for each kind of step; with `reset` a constant no loop has a branch. A
// Team is what shares a row, one thread or more: each(n, f) calls f(k) for its part of [0, n).
#pragma once
#include "lstm_math.h"
#include "lstm_params.h"

namespace fastlstm {

FASTLSTM_INLINE bool is_live(const Step& s, int64_t row) {
  return !s.lengths || s.t < s.lengths[row];
}

FASTLSTM_INLINE bool is_reset(const Step& s, int64_t row) { return s.reset && s.reset[row]; }

// Whether the row's state before this step is h_0, c_0.
FASTLSTM_INLINE bool starts_here(const Step& s, int64_t row) {
  return row >= s.prev_rows || (s.lengths && s.reverse && s.t == s.lengths[row] - 1);
}

template <typename T, typename A>
FASTLSTM_INLINE Gates<A> load_gates(const T* row, int64_t unit, int64_t hidden_size) {
  return {A(row[unit]), A(row[unit + hidden_size]), A(row[unit + 2 * hidden_size]),
          A(row[unit + 3 * hidden_size])};
}

template <typename T, typename A>
FASTLSTM_INLINE void store_gates(T* row, int64_t unit, int64_t hidden_size, const Gates<A>& gates) {
  row[unit] = T(gates.i);
  row[unit + hidden_size] = T(gates.f);
  row[unit + 2 * hidden_size] = T(gates.g);
  row[unit + 3 * hidden_size] = T(gates.o);
}

// The state of a live row, to where it goes.
template <typename T, typename A>
FASTLSTM_INLINE void store_state(const StepForward<T, A>& s, int64_t row, int64_t unit, A h, A c) {
  s.c_state[row * s.hidden_size + unit] = c;
  s.h_state[row * s.hidden_size + unit] = T(h);
  s.output[row * s.output_stride + unit] = T(h);
  s.cells[row * s.hidden_size + unit] = c;
}

// A dead row (t >= lengths[row]): state stays, output is zero, saved values are defined.
template <typename T, typename A, typename Team>
FASTLSTM_INLINE void dead_row(const StepForward<T, A>& s, int64_t row, const Team& team) {
  team.each(s.hidden_size, [&](int64_t unit) FASTLSTM_INLINE_LAMBDA {
    s.output[row * s.output_stride + unit] = T(A(0));
    s.cells[row * s.hidden_size + unit] = s.c_state[row * s.hidden_size + unit];
    store_gates(s.gates + row * 4 * s.hidden_size, unit, s.hidden_size,
                Gates<A>{A(0), A(0), A(0), A(0)});
  });
}

template <typename T, typename A, typename Team>
FASTLSTM_INLINE void step_row(const StepForward<T, A>& s, int64_t row, bool reset,
                              const Team& team) {
  if (!is_live(s, row)) return dead_row(s, row, team);
  team.each(s.hidden_size, [&](int64_t unit) FASTLSTM_INLINE_LAMBDA {
    auto pre = load_gates<T, A>(s.x_gates + row * 4 * s.hidden_size, unit, s.hidden_size);
    A c_prev = s.c_state[row * s.hidden_size + unit];
    if (reset)
      c_prev = A(0);
    else
      pre = pre + load_gates<T, A>(s.h_gates + row * 4 * s.hidden_size, unit, s.hidden_size);
    const Gates<A> gates = activate(pre);
    const A c = next_cell(gates, c_prev);
    store_state(s, row, unit, hidden(gates.o, c), c);
    store_gates(s.gates + row * 4 * s.hidden_size, unit, s.hidden_size, gates);
  });
}

// The row of c_{t-1}, if the row is not reset.
template <typename T, typename A>
FASTLSTM_INLINE const A* cells_before(const StepBackward<T, A>& s, int64_t row) {
  return (starts_here(s, row) ? s.c_0 : s.prev_cells) + row * s.hidden_size;
}

template <typename T, typename A, typename Team>
FASTLSTM_INLINE void dead_row(const StepBackward<T, A>& s, int64_t row, const Team& team) {
  team.each(s.hidden_size, [&](int64_t unit) FASTLSTM_INLINE_LAMBDA {
    store_gates(s.d_gates + row * 4 * s.hidden_size, unit, s.hidden_size,
                Gates<A>{A(0), A(0), A(0), A(0)});
  });
}

template <typename T, typename A, typename Team>
FASTLSTM_INLINE void step_row(const StepBackward<T, A>& s, int64_t row, bool reset,
                              const Team& team) {
  if (!is_live(s, row)) return dead_row(s, row, team);
  const A* const before = cells_before(s, row);
  team.each(s.hidden_size, [&](int64_t unit) FASTLSTM_INLINE_LAMBDA {
    const auto gates = load_gates<T, A>(s.gates + row * 4 * s.hidden_size, unit, s.hidden_size);
    const A c_prev = reset ? A(0) : before[unit];
    T* dh_state = s.dh_state + row * s.hidden_size + unit;
    A* dc_state = s.dc_state + row * s.hidden_size + unit;
    const A dh = A(*dh_state) + A(s.d_output[row * s.d_output_stride + unit]);
    const A dc = *dc_state + s.d_cells[row * s.d_cells_stride + unit];
    const A c = s.cells[row * s.hidden_size + unit];
    const auto d = step_backward(gates, c_prev, c, dh, dc, reset);
    *dh_state = T(A(0));
    *dc_state = d.dc;
    store_gates(s.d_gates + row * 4 * s.hidden_size, unit, s.hidden_size, d.d_pre);
  });
}

}  // namespace fastlstm
