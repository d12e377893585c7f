// What one unit of one row does at a step, once its products are known: zoneout, reset and the
// gradients that go on to the step before. Over value types, as lstm_math.h, so that scalars on
// both devices and the CPU's vectors share one text. A row that has ended takes no step: its state
// stays, its output and its gradients are zero.
#pragma once
#include "lstm_math.h"

namespace fastlstm {

template <typename A>
struct CellState {
  A h, c;
};

// Which states are zoned out.
struct Zoned {
  bool h, c;
};

// The state after a step. `keep` has the shares of the state before that stay, where it is zoned
// out; a reset row has a state of zeros before.
template <typename A>
FASTLSTM_INLINE CellState<A> keep_state(const CellState<A>& next, const CellState<A>& before,
                                        const CellState<A>& keep, Zoned zoned) {
  CellState<A> state = next;
  if (zoned.h) state.h = zoneout(keep.h, before.h, next.h);
  if (zoned.c) state.c = zoneout(keep.c, before.c, next.c);
  return state;
}

// What goes into a step backward.
template <typename A>
struct StepGradient {
  A dh, dc;  // dL/dh_t and dL/dc_t, from the steps after and from outside
  CellState<A> keep;
  Zoned zoned;
  bool reset;
};

// What comes out: of the pre-activations, and of the state before. Of h only what zoneout let
// through; the rest comes from the product of d_pre with W_hh.
template <typename A>
struct PreviousGradient {
  Gates<A> d_pre;
  A dh, dc;
};

template <typename A>
FASTLSTM_INLINE PreviousGradient<A> step_backward(const Gates<A>& gates, const A& c_prev,
                                                  const A& c, const StepGradient<A>& into) {
  A dh = into.dh, dc = into.dc, cell = c, kept_dh(0), kept_dc(0);
  if (into.zoned.h) kept_dh = zoneout_backward(into.keep.h, dh);
  if (into.zoned.c) {
    cell = next_cell(gates, c_prev);  // before zoneout
    kept_dc = zoneout_backward(into.keep.c, dc);
  }
  const HiddenGradient<A> through_h = hidden_backward(gates.o, cell, dh);
  dc = dc + through_h.c;
  PreviousGradient<A> before;
  before.d_pre = next_cell_backward(gates, c_prev, dc, kept_dc);
  before.d_pre.o = through_h.o_pre;
  before.dh = kept_dh, before.dc = dc;
  if (into.reset) before.dh = A(0), before.dc = A(0);
  return before;
}

}  // namespace fastlstm
