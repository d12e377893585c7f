// Gate equations of one LSTM unit: the only place in the C++ code where they are written down.
//
// Every function is a template over the value type A, so one text serves double and float on both
// devices, and at::Tensor for the differentiable recomputation behind double backward. A value
// type brings its own sigmoid(A) and tanh(A), found by argument-dependent lookup or below.
//
// Hochreiter & Schmidhuber (1997), with the forget gate of Gers et al. (2000); names and gate
// order (i, f, g, o) as in torch.nn.LSTM. docs/design.md has the table to the lecture's notation.
#pragma once
#include "elementary.h"

namespace fastlstm {

// The four gates of a unit: pre-activations on the way in, activations on the way out.
template <typename A>
struct Gates {
  A i, f, g, o;
};

template <typename A>
FASTLSTM_HD Gates<A> activate(const Gates<A>& pre) {
  return {sigmoid(pre.i), sigmoid(pre.f), tanh(pre.g), sigmoid(pre.o)};
}

// c_t = f * c_{t-1} + i * g
template <typename A>
FASTLSTM_HD A next_cell(const Gates<A>& gates, const A& c_prev) {
  return gates.f * c_prev + gates.i * gates.g;
}

// h_t = o * tanh(c_t)
template <typename A>
FASTLSTM_HD A hidden(const A& o, const A& c) {
  return o * tanh(c);
}

// d loss / d(pre-activations). dc enters as dL/dc_t (from the future and from outside) and leaves
// as dL/dc_{t-1}; dh is dL/dh_t.
template <typename A>
FASTLSTM_HD Gates<A> cell_backward(const Gates<A>& gates, const A& c_prev, const A& c, const A& dh,
                                   A& dc) {
  const A one(1);
  const A tanh_c = tanh(c);
  const A dc_total = dc + dh * gates.o * (one - tanh_c * tanh_c);
  dc = dc_total * gates.f;
  return {dc_total * gates.g * gates.i * (one - gates.i),
          dc_total * c_prev * gates.f * (one - gates.f),
          dc_total * gates.i * (one - gates.g * gates.g), dh * tanh_c * gates.o * (one - gates.o)};
}

}  // namespace fastlstm
