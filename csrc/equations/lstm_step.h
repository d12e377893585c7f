// One row of one step of the stepwise engine. CPU and CUDA call step_row(), which has an overload
// for each kind of step. The CPU passes a constant as `reset`, so that its loops have no branch.
//
// A ThreadGroup is the threads that share a row: one thread of a CPU, a thread or a block of a GPU.
// Its each(n, f) calls f(k) for the calling thread's share of the indices k in [0, n).
#pragma once
#include "lstm_math.h"
#include "lstm_params.h"

namespace fastlstm {

FASTLSTM_INLINE bool is_live(const Step& s, int64_t row) {
  return !s.lengths || s.t < s.lengths[row];
}

FASTLSTM_INLINE bool is_reset(const Step& s, int64_t row) { return s.reset && s.reset[row]; }

// Whether the state of a row before this step is h_0 and c_0.
FASTLSTM_INLINE bool is_first_step_of_row(const Step& s, int64_t row) {
  return row >= s.prev_rows || (s.lengths && s.reverse && s.t == s.lengths[row] - 1);
}

// Loads the four gates of a unit from a row [4H].
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
FASTLSTM_INLINE void store_hidden(const HiddenOutput<T>& s, int64_t row, int64_t unit, A h) {
  const int64_t index = row * s.hidden_size + unit;
  s.h_state[index] = T(h);
  if (s.h_mask) s.h_masked[index] = T(A(T(h)) * A(s.h_mask[index]));
  s.output[row * s.output_stride + unit] = T(h);
}

template <typename T, typename A>
FASTLSTM_INLINE void store_state(const ForwardStep<T, A>& s, int64_t row, int64_t unit, A h, A c) {
  s.c_state[row * s.hidden_size + unit] = c;
  store_hidden(s, row, unit, h);
  s.cells[row * s.hidden_size + unit] = c;
}

// Stores what a dead row has at this step: zeros as output and gates, and its last c as cells.
template <typename T, typename A, typename ThreadGroup>
FASTLSTM_INLINE void store_dead(const ForwardStep<T, A>& s, int64_t row, const ThreadGroup& group) {
  group.each(s.hidden_size, [&](int64_t unit) FASTLSTM_INLINE_LAMBDA {
    s.output[row * s.output_stride + unit] = T(A(0));
    s.cells[row * s.hidden_size + unit] = s.c_state[row * s.hidden_size + unit];
    store_gates(s.gates + row * 4 * s.hidden_size, unit, s.hidden_size, Gates<A>{});
  });
}

template <typename T, typename A, typename ThreadGroup>
FASTLSTM_INLINE void step_row(const ForwardStep<T, A>& s, int64_t row, bool reset,
                              const ThreadGroup& group) {
  if (!is_live(s, row)) return store_dead(s, row, group);
  group.each(s.hidden_size, [&](int64_t unit) FASTLSTM_INLINE_LAMBDA {
    auto pre = load_gates<T, A>(s.x_gates + row * 4 * s.hidden_size, unit, s.hidden_size);
    A c_prev = s.c_state[row * s.hidden_size + unit];
    if (reset)
      c_prev = A(0);
    else
      pre = pre + load_gates<T, A>(s.h_gates + row * 4 * s.hidden_size, unit, s.hidden_size);
    const Gates<A> gates = activate(pre);
    const A c = next_cell(gates, c_prev);
    store_state(s, row, unit, hidden_state(gates.o, c), c);
    store_gates(s.gates + row * 4 * s.hidden_size, unit, s.hidden_size, gates);
  });
}

template <typename T, typename A, typename ThreadGroup>
FASTLSTM_INLINE void step_row(const ProjectionForwardStep<T, A>& s, int64_t row, bool,
                              const ThreadGroup& group) {
  const bool live = is_live(s, row);
  group.each(s.hidden_size, [&](int64_t unit) FASTLSTM_INLINE_LAMBDA {
    if (live)
      store_hidden(s, row, unit, A(s.projected[row * s.hidden_size + unit]));
    else
      s.output[row * s.output_stride + unit] = T(A(0));
  });
}

template <typename T>
FASTLSTM_INLINE bool has_step_after(const HiddenGradientInput<T>& s, int64_t row) {
  return row < s.rows_after && (!s.lengths || s.reverse || s.t + 1 < s.lengths[row]);
}

// Returns dL/dh_t of a unit of a live row, and sets dh_state of the unit to zero.
template <typename A, typename T>
FASTLSTM_INLINE A take_hidden_gradient(const HiddenGradientInput<T>& s, int64_t row, int64_t unit) {
  const int64_t index = row * s.hidden_size + unit;
  const bool has_after = has_step_after(s, row);
  A dh = A(s.dh_state[index]);
  if (has_after && s.h_mask) dh = A(T(dh * A(s.h_mask[index])));
  if (has_after && s.reset_after && s.reset_after[row]) dh = A(0);
  s.dh_state[index] = T(A(0));
  return dh + A(s.d_output[row * s.d_output_stride + unit]);
}

template <typename T, typename A, typename ThreadGroup>
FASTLSTM_INLINE void step_row(const ProjectionBackwardStep<T, A>& s, int64_t row, bool,
                              const ThreadGroup& group) {
  const bool live = is_live(s, row);
  group.each(s.hidden_size, [&](int64_t unit) FASTLSTM_INLINE_LAMBDA {
    s.d_projected[row * s.hidden_size + unit] =
        T(live ? take_hidden_gradient<A>(s, row, unit) : A(0));
  });
}

// Returns c_{t-1} [H] of a row that is not reset.
template <typename T, typename A>
FASTLSTM_INLINE const A* cells_before(const BackwardStep<T, A>& s, int64_t row) {
  return (is_first_step_of_row(s, row) ? s.c_0 : s.prev_cells) + row * s.hidden_size;
}

template <typename T, typename A, typename ThreadGroup>
FASTLSTM_INLINE void store_dead(const BackwardStep<T, A>& s, int64_t row,
                                const ThreadGroup& group) {
  group.each(s.hidden_size, [&](int64_t unit) FASTLSTM_INLINE_LAMBDA {
    store_gates(s.d_gates + row * 4 * s.hidden_size, unit, s.hidden_size, Gates<A>{});
  });
}

template <typename T, typename A, typename ThreadGroup>
FASTLSTM_INLINE void step_row(const BackwardStep<T, A>& s, int64_t row, bool reset,
                              const ThreadGroup& group) {
  if (!is_live(s, row)) return store_dead(s, row, group);
  const A* const before = cells_before(s, row);
  group.each(s.hidden_size, [&](int64_t unit) FASTLSTM_INLINE_LAMBDA {
    const auto gates = load_gates<T, A>(s.gates + row * 4 * s.hidden_size, unit, s.hidden_size);
    const A c_prev = reset ? A(0) : before[unit];
    A* dc_state = s.dc_state + row * s.hidden_size + unit;
    const A dh = take_hidden_gradient<A>(s, row, unit);
    A dc = *dc_state + s.d_cells[row * s.d_cells_stride + unit];
    const A c = s.cells[row * s.hidden_size + unit];
    const auto d_pre = step_backward(gates, c_prev, c, dh, dc, reset);
    *dc_state = dc;
    store_gates(s.d_gates + row * 4 * s.hidden_size, unit, s.hidden_size, d_pre);
  });
}

}  // namespace fastlstm
