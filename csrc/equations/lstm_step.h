// One unit of one row of one step: loads, the cell equations, stores. Both devices call these two
// functions, each for its own (row, unit).
#pragma once
#include "cell_step.h"
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

template <typename T, typename A>
FASTLSTM_INLINE CellState<A> zoneout_of(const Zoneout<T>& zoneout, int64_t row, int64_t unit) {
  return {A(zoneout.h[row * zoneout.h_stride + unit]), A(zoneout.c[row * zoneout.c_stride + unit])};
}

// The state of a live row after zoneout, to where it goes. c_state and h_state hold those of
// the step before.
template <typename T, typename A>
FASTLSTM_INLINE void store_state(const StepForward<T, A>& s, int64_t row, int64_t unit, bool reset,
                                 bool zoned, CellState<A> state) {
  A* c_state = s.c_state + row * s.hidden_size + unit;
  T* h_state = s.h_state + row * s.hidden_size + unit;
  if (zoned) {
    const CellState<A> before{reset ? A(0) : A(*h_state), reset ? A(0) : *c_state};
    state = keep_state(state, before, zoneout_of<T, A>(s.zoneout, row, unit), {true, true});
  }
  *c_state = state.c;
  *h_state = T(state.h);
  s.output[row * s.output_stride + unit] = T(state.h);
  s.cells[row * s.hidden_size + unit] = state.c;
}

// `pre`: the input's part of the pre-activations.
template <typename T, typename A>
FASTLSTM_INLINE void forward_unit(const StepForward<T, A>& s, int64_t row, int64_t unit, bool reset,
                                  bool zoned, Gates<A> pre) {
  A c_prev = s.c_state[row * s.hidden_size + unit];
  if (reset) {
    c_prev = A(0);
  } else {
    const auto from_h = load_gates<T, A>(s.h_gates + row * 4 * s.hidden_size, unit, s.hidden_size);
    pre = {pre.i + from_h.i, pre.f + from_h.f, pre.g + from_h.g, pre.o + from_h.o};
  }
  const Gates<A> gates = activate(pre);
  const A c = next_cell(gates, c_prev);
  store_state(s, row, unit, reset, zoned, CellState<A>{hidden(gates.o, c), c});
  store_gates(s.gates + row * 4 * s.hidden_size, unit, s.hidden_size, gates);
}

template <typename T, typename A>
FASTLSTM_INLINE void forward_unit(const StepForward<T, A>& s, int64_t row, int64_t unit, bool reset,
                                  bool zoned) {
  const T* const from_x = s.x_gates + row * 4 * s.hidden_size;
  forward_unit(s, row, unit, reset, zoned, load_gates<T, A>(from_x, unit, s.hidden_size));
}

// A dead row (t >= lengths[row]): state stays, output is zero, saved values are defined.
template <typename T, typename A>
FASTLSTM_INLINE void forward_dead_unit(const StepForward<T, A>& s, int64_t row, int64_t unit) {
  s.output[row * s.output_stride + unit] = T(A(0));
  s.cells[row * s.hidden_size + unit] = s.c_state[row * s.hidden_size + unit];
  store_gates(s.gates + row * 4 * s.hidden_size, unit, s.hidden_size,
              Gates<A>{A(0), A(0), A(0), A(0)});
}

// The row of c_{t-1}, if the row is not reset.
template <typename T, typename A>
FASTLSTM_INLINE const A* cells_before(const StepBackward<T, A>& s, int64_t row) {
  return (starts_here(s, row) ? s.c_0 : s.prev_cells) + row * s.hidden_size;
}

// `before`: cells_before.
template <typename T, typename A>
FASTLSTM_INLINE void backward_unit(const StepBackward<T, A>& s, int64_t row, int64_t unit,
                                   const A* before, bool reset, bool zoned) {
  const auto gates = load_gates<T, A>(s.gates + row * 4 * s.hidden_size, unit, s.hidden_size);
  const A c_prev = reset ? A(0) : before[unit];
  T* dh_state = s.dh_state + row * s.hidden_size + unit;
  A* dc_state = s.dc_state + row * s.hidden_size + unit;
  StepGradient<A> into;
  into.dh = A(*dh_state) + A(s.d_output[row * s.d_output_stride + unit]);
  into.dc = *dc_state + s.d_cells[row * s.d_cells_stride + unit];
  into.reset = reset, into.zoned = {zoned, zoned};
  if (zoned) into.keep = zoneout_of<T, A>(s.zoneout, row, unit);
  const auto d = step_backward(gates, c_prev, s.cells[row * s.hidden_size + unit], into);
  *dh_state = T(d.dh);
  *dc_state = d.dc;
  store_gates(s.d_gates + row * 4 * s.hidden_size, unit, s.hidden_size, d.d_pre);
}

template <typename T, typename A>
FASTLSTM_INLINE void backward_dead_unit(const StepBackward<T, A>& s, int64_t row, int64_t unit) {
  store_gates(s.d_gates + row * 4 * s.hidden_size, unit, s.hidden_size,
              Gates<A>{A(0), A(0), A(0), A(0)});
}

}  // namespace fastlstm
