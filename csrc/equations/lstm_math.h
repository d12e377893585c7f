// The equations of one LSTM unit, forward and backward (Hochreiter & Schmidhuber, 1997, with the
// forget gate of Gers et al., 2000). The C++ code has them only here. Names and gate order i, f, g,
// o are those of torch.nn.LSTM. docs/howto/from-the-lecture.md has the names of the lecture.
//
// Every function is a template over the value type A: float or double on both devices, a vector of
// units (cpu/vec.h), or at::Tensor. Argument-dependent lookup finds their sigmoid and tanh.
#pragma once
#include "elementary.h"

namespace fastlstm {

template <typename A>
struct Gates {
  A i, f, g, o;
};

template <typename A>
FASTLSTM_INLINE Gates<A> operator+(const Gates<A>& a, const Gates<A>& b) {
  return {a.i + b.i, a.f + b.f, a.g + b.g, a.o + b.o};
}

template <typename A>
FASTLSTM_INLINE Gates<A> activate(const Gates<A>& pre) {
  return {sigmoid(pre.i), sigmoid(pre.f), tanh(pre.g), sigmoid(pre.o)};
}

// c_t = f * c_{t-1} + i * g
template <typename A>
FASTLSTM_INLINE A next_cell(const Gates<A>& gates, const A& c_prev) {
  return fused(gates.f, c_prev, gates.i * gates.g);
}

// h_t = o * tanh(c_t)
template <typename A>
FASTLSTM_INLINE A hidden_state(const A& o, const A& c) {
  return o * tanh(c);
}

// The gradients of `hidden_state` with respect to the pre-activation of o, and to c.
template <typename A>
struct HiddenStateGradient {
  A o_pre, c;
};
template <typename A>
FASTLSTM_INLINE HiddenStateGradient<A> hidden_state_backward(const A& o, const A& c, const A& dh) {
  const A one(1);
  const A tanh_c = tanh(c);
  return {dh * tanh_c * o * (one - o), dh * o * fused(-tanh_c, tanh_c, one)};
}

// The gradients of `next_cell` with respect to the pre-activations of i, f and g. The gradient of o
// is 0, because c_t does not depend on o. dc is dL/dc_t at the call and dL/dc_{t-1} afterwards.
template <typename A>
FASTLSTM_INLINE Gates<A> next_cell_backward(const Gates<A>& gates, const A& c_prev, A& dc) {
  const A one(1);
  const A dc_t = dc;
  dc = dc_t * gates.f;
  return {dc_t * gates.g * gates.i * (one - gates.i), dc_t * c_prev * gates.f * (one - gates.f),
          dc_t * gates.i * fused(-gates.g, gates.g, one), A()};
}

// Returns the gradients of the four pre-activations. Their product with W_hh is the gradient of
// h_{t-1}. dh is dL/dh_t. At the call dc is dL/dc_t without the part through h_t, which this
// function adds. Afterwards dc is dL/dc_{t-1}. With `reset` c_prev must be 0, and dc becomes 0.
template <typename A>
FASTLSTM_INLINE Gates<A> step_backward(const Gates<A>& gates, const A& c_prev, const A& c,
                                       const A& dh, A& dc, bool reset) {
  const HiddenStateGradient<A> through_h = hidden_state_backward(gates.o, c, dh);
  dc = dc + through_h.c;
  Gates<A> d_pre = next_cell_backward(gates, c_prev, dc);
  d_pre.o = through_h.o_pre;
  dc = reset ? A(0) : dc;
  return d_pre;
}

}  // namespace fastlstm
