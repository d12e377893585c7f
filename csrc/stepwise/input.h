// Products outside the walk: the input's part of the gates, and gates that were not saved.
#pragma once
#include "core/flat_rows.h"
#include "stepwise/layer_norm.h"

namespace fastlstm::stepwise {

// The products of a walk, to = rows W^T, as ATen makes them.
struct AtenProducts {
  static void multiply(const Tensor& rows, const Tensor& w, Tensor& to) {
    at::mm_out(to, rows, w.t());
  }
};

inline OptionalTensor bias_of(const Direction& w) {
  if (!w.b_ih.defined()) return std::nullopt;
  return w.b_hh.defined() ? w.b_ih + w.b_hh : w.b_ih;
}

// x W_ih^T + b of every flat row into x_gates [R,4H]; where the layer normalizes, LN(x W_ih^T) + b.
template <typename Products = AtenProducts>
void multiply_input(const Layer& layer, const Direction& w, const Tensor& input, Tensor& x_gates) {
  if (layer.normalizes()) {
    Products::multiply(input, w.w_ih, x_gates);
    x_gates.copy_(RowNorm(x_gates, w.gain_ih, bias_of(w)).y());
  } else if (layer.has_bias())
    at::addmm_out(x_gates, *bias_of(w), input, w.w_ih.t());
  else
    at::mm_out(x_gates, input, w.w_ih.t());
}

// The activated gates of all flat rows, recomputed from the input and from what W_hh sees, h_prev
// [R,P]. Since every h_{t-1} is known, there is no walk: the kernel takes many rows for
// one step, and its c and h are discarded.
template <typename T, typename A, typename StepKernels>
void make_gates(const Layer& layer, int64_t d, const Tensor& input, const Tensor& h_prev,
                Tensor gates) {
  constexpr int64_t kRowsAtOnce = 2048;
  const Direction& w = layer.directions[d];
  const int64_t flat_rows = gates.size(0), hidden = layer.hidden_size.expect_int();
  multiply_input(layer, w, input, gates);
  const int64_t chunk = std::min(flat_rows, kRowsAtOnce);
  Tensor h_gates = at::empty({chunk, 4 * hidden}, gates.options());
  Tensor c = at::zeros({chunk, hidden}, gates.options().dtype(state_dtype(gates.scalar_type())));
  Tensor h = at::empty({chunk, hidden}, gates.options());
  for (int64_t first = 0; first < flat_rows; first += chunk) {
    StepForward<T, A> step{};
    step.rows = std::min(chunk, flat_rows - first), step.hidden_size = hidden;
    Tensor from_h = h_gates.narrow(0, 0, step.rows);
    at::mm_out(from_h, h_prev.narrow(0, first, step.rows), w.w_hh.t());
    step.x_gates = step.gates = data<T>(gates) + first * 4 * hidden;
    step.h_gates = const_data<T>(from_h);
    step.c_state = step.cells = data<A>(c);
    step.h_state = step.output = data<T>(h);
    step.output_stride = hidden;
    if (layer.normalizes())
      StepKernels::run(StepNorms<T, A>(w).forward(step));
    else
      StepKernels::run(step);
  }
}

}  // namespace fastlstm::stepwise
