// What one unit of one row does at a step backward, once its products are known: the gradients that
// go on to the step before. Over value types, as lstm_math.h, so that scalars on both devices and
// the CPU's vectors share one text. A row that has ended takes no step: its state stays, its output
// and its gradients are zero.
#pragma once
#include "lstm_math.h"

namespace fastlstm {

// The gradients of the pre-activations, and of the cell before. That of the hidden state before
// comes from the product of d_pre with W_hh.
template <typename A>
struct PreviousGradient {
  Gates<A> d_pre;
  A dc;
};

// dh, dc: dL/dh_t and dL/dc_t, from the steps after and from outside. A reset row has a c_prev of
// zeros.
template <typename A>
FASTLSTM_INLINE PreviousGradient<A> step_backward(const Gates<A>& gates, const A& c_prev,
                                                  const A& c, const A& dh, A dc, bool reset) {
  const HiddenGradient<A> through_h = hidden_backward(gates.o, c, dh);
  dc = dc + through_h.c;
  PreviousGradient<A> before;
  before.d_pre = next_cell_backward(gates, c_prev, dc);
  before.d_pre.o = through_h.o_pre;
  before.dc = reset ? A(0) : dc;
  return before;
}

}  // namespace fastlstm
