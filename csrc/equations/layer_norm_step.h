// One row of one step of an LSTM with layer normalization (Ba, Kiros & Hinton, 2016), forward and
// backward:
//
//   pre-activations = LN(W_ih x) gain_ih + b_ih + LN(W_hh h) gain_hh + b_hh
//   h = o tanh(LN(c) gain_c + bias_c)
//
// LN subtracts the mean of a row and divides by its standard deviation. ATen has normalized W_ih x
// already: `x_gates` holds LN(W_ih x) gain_ih + b_ih + b_hh. One ThreadGroup (lstm_step.h) computes
// a whole row. Besides each(n, f) it has total(n, f): the sum of f(k) over all k in [0, n), which
// every thread of the group gets. total is a barrier of the group. each() gives a thread the same
// indices in every call with the same n.
#pragma once
#include "lstm_step.h"

namespace fastlstm {

constexpr double kNormEpsilon = 1e-5;

template <typename T>
struct NormWeights {
  const T* gain_hh;          // [4H]
  const T *gain_c, *bias_c;  // [H]
};

template <typename T, typename A>
struct NormForwardStep : ForwardStep<T, A>, NormWeights<T> {
  static constexpr bool kWholeRows = true;
};

template <typename T, typename A>
struct NormBackwardStep : BackwardStep<T, A>, NormWeights<T> {
  static constexpr bool kWholeRows = true;

  const T* h_gates;  // [rows,4H] h_{t-1} W_hh^T
  T* d_h_gates;  // [rows,4H] receives the gradient of h_gates; 0 if the row has ended or is reset
  A* d_normed_cells;  // [rows,H]  receives dL/d(LN(c) gain_c + bias_c); 0 if the row has ended
};

// LN of one row, as a function of an element: (x - mean) * scale.
template <typename A>
struct Normalizer {
  A mean, scale;
  FASTLSTM_INLINE A operator()(A x) const { return (x - mean) * scale; }
};

// Returns LN of the row x(0), ..., x(n - 1). inverse_n is 1 / n.
template <typename A, typename ThreadGroup, typename X>
FASTLSTM_INLINE Normalizer<A> normalizer(const ThreadGroup& group, int64_t n, A inverse_n,
                                         const X& x) {
  const A mean = group.total(n, x) * inverse_n;
  const A squares = group.total(n, [&](int64_t k) { return (x(k) - mean) * (x(k) - mean); });
  return {mean, inverse_square_root(squares * inverse_n + A(kNormEpsilon))};
}

// Returns a function of k, the gradient of element x(k) of a row. d(k) is the gradient of LN of the
// element. The mean of d gives the part of the result that comes through the mean of the row, and
// the mean of d * LN(x) gives the part that comes through the standard deviation of the row.
template <typename A, typename ThreadGroup, typename X, typename D>
FASTLSTM_INLINE auto normalizer_gradient(const ThreadGroup& group, int64_t n, A inverse_n,
                                         const Normalizer<A>& normalize, const X& x, const D& d) {
  const A mean_d = group.total(n, d) * inverse_n;
  const A mean_dx = group.total(n, [&](int64_t k) { return d(k) * normalize(x(k)); }) * inverse_n;
  return [=](int64_t k) FASTLSTM_INLINE_LAMBDA {
    return normalize.scale * fused(-normalize(x(k)), mean_dx, d(k) - mean_d);
  };
}

template <typename T, typename A, typename ThreadGroup>
FASTLSTM_INLINE void step_row(const NormForwardStep<T, A>& s, int64_t row, bool reset,
                              const ThreadGroup& group) {
  const int64_t hidden_size = s.hidden_size;
  const A inverse_size = A(1) / A(hidden_size);
  if (!is_live(s, row)) return store_dead(s, row, group);
  const T* const h_gates_row = s.h_gates + row * 4 * hidden_size;
  T* const gates_row = s.gates + row * 4 * hidden_size;
  A* const cells = s.cells + row * hidden_size;
  const auto normalize_h = normalizer(group, 4 * hidden_size, inverse_size / 4,
                                      [&](int64_t k) { return A(h_gates_row[k]); });
  group.each(hidden_size, [&](int64_t u) FASTLSTM_INLINE_LAMBDA {
    auto pre = load_gates<T, A>(s.x_gates + row * 4 * hidden_size, u, hidden_size);
    if (!reset) {
      const auto h = load_gates<T, A>(h_gates_row, u, hidden_size);
      const auto gain = load_gates<T, A>(s.gain_hh, u, hidden_size);
      pre = {fused(gain.i, normalize_h(h.i), pre.i), fused(gain.f, normalize_h(h.f), pre.f),
             fused(gain.g, normalize_h(h.g), pre.g), fused(gain.o, normalize_h(h.o), pre.o)};
    }
    const Gates<A> gates = activate(pre);
    store_gates(gates_row, u, hidden_size, gates);
    cells[u] = next_cell(gates, reset ? A(0) : s.c_state[row * hidden_size + u]);
  });
  const auto normalize_c =
      normalizer(group, hidden_size, inverse_size, [&](int64_t u) { return cells[u]; });
  group.each(hidden_size, [&](int64_t u) FASTLSTM_INLINE_LAMBDA {
    const A normed = fused(A(s.gain_c[u]), normalize_c(cells[u]), A(s.bias_c[u]));
    const A h = hidden_state(A(gates_row[3 * hidden_size + u]), normed);
    store_state(s, row, u, h, cells[u]);
  });
}

template <typename T, typename A, typename ThreadGroup>
FASTLSTM_INLINE void step_row(const NormBackwardStep<T, A>& s, int64_t row, bool reset,
                              const ThreadGroup& group) {
  const int64_t hidden_size = s.hidden_size;
  const A inverse_size = A(1) / A(hidden_size);
  T* const d_gates = s.d_gates + row * 4 * hidden_size;
  T* const d_h_gates = s.d_h_gates + row * 4 * hidden_size;
  A* const d_normed = s.d_normed_cells + row * hidden_size;
  if (!is_live(s, row)) {
    store_dead(s, row, group);
    group.each(hidden_size, [&](int64_t u) FASTLSTM_INLINE_LAMBDA {
      store_gates(d_h_gates, u, hidden_size, Gates<A>{});
      d_normed[u] = A(0);
    });
    return;
  }
  const T* const gates_row = s.gates + row * 4 * hidden_size;
  const auto gates_at = [&](int64_t u) { return load_gates<T, A>(gates_row, u, hidden_size); };
  const A* const before = cells_before(s, row);
  const auto c_prev = [&](int64_t u) { return reset ? A(0) : before[u]; };
  const auto c = [&](int64_t u) { return s.cells[row * hidden_size + u]; };
  const auto normalize_c = normalizer(group, hidden_size, inverse_size, c);
  group.each(hidden_size, [&](int64_t u) FASTLSTM_INLINE_LAMBDA {
    const A dh = take_hidden_gradient<A>(s, row, u);
    const A normed = fused(A(s.gain_c[u]), normalize_c(c(u)), A(s.bias_c[u]));
    const HiddenStateGradient<A> through_h = hidden_state_backward(gates_at(u).o, normed, dh);
    d_normed[u] = through_h.c;
    d_gates[3 * hidden_size + u] = T(through_h.o_pre);  // may overwrite gate o, used just before
  });
  const auto d_ln_c = [&](int64_t u) { return d_normed[u] * A(s.gain_c[u]); };
  const auto d_c = normalizer_gradient(group, hidden_size, inverse_size, normalize_c, c, d_ln_c);
  group.each(hidden_size, [&](int64_t u) FASTLSTM_INLINE_LAMBDA {
    A* const dc_state = s.dc_state + row * hidden_size + u;
    A dc = *dc_state + s.d_cells[row * s.d_cells_stride + u];
    dc += d_c(u);
    Gates<A> d_pre = next_cell_backward(gates_at(u), c_prev(u), dc);
    d_pre.o = A(d_gates[3 * hidden_size + u]);
    store_gates(d_gates, u, hidden_size, d_pre);
    *dc_state = reset ? A(0) : dc;
  });
  const T* const h_gates_row = s.h_gates + row * 4 * hidden_size;
  const auto h_gate = [&](int64_t k) { return A(h_gates_row[k]); };
  const auto d_ln_h = [&](int64_t k) { return A(d_gates[k]) * A(s.gain_hh[k]); };
  const auto normalize_h = normalizer(group, 4 * hidden_size, inverse_size / 4, h_gate);
  const auto d_h_gate =
      normalizer_gradient(group, 4 * hidden_size, inverse_size / 4, normalize_h, h_gate, d_ln_h);
  group.each(4 * hidden_size, [&](int64_t k) FASTLSTM_INLINE_LAMBDA {
    d_h_gates[k] = T(reset ? A(0) : d_h_gate(k));
  });
}

}  // namespace fastlstm
