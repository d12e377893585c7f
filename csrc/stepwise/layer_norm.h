// Layer normalization in the stepwise engine: what ATen computes for all steps at once, in
// state_dtype (the norm of W_ih x, the gradients of gains and biases), and the arguments of the
// steps in layer_norm_step.h.
#pragma once

#include "core/layer_call.h"
#include "equations/layer_norm_step.h"
#include "pointers.h"

namespace fastlstm {

// y = (x - mean) * scale * gain + bias over the last dimension of x [R,size].
struct RowNorm {
  Tensor x, gain, y, mean, scale;

  RowNorm(const Tensor& rows, const Tensor& weight, const OptionalTensor& bias)
      : x(rows.to(state_dtype(rows.scalar_type()))), gain(weight.to(x.scalar_type())) {
    const OptionalTensor shift = bias ? OptionalTensor(bias->to(x.scalar_type())) : std::nullopt;
    std::tie(y, mean, scale) = at::native_layer_norm(x, {x.size(-1)}, gain, shift, kNormEpsilon);
  }
  std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& d_y) const {
    return at::native_layer_norm_backward(d_y.to(x.scalar_type()), x, {x.size(-1)}, mean, scale,
                                          gain, gain, {true, true, true});
  }
};

// What layer normalization adds to the backward walk of a direction. Its tensors have R rows.
template <typename T, typename A>
class NormsBackward {
 public:
  NormsBackward(const Direction& w, const Tensor& h_prev, const Tensor& cells)
      : w_(w),
        h_gates_(at::mm(h_prev, w.w_hh.t())),
        d_h_gates_(at::empty_like(h_gates_)),
        d_normed_cells_(at::empty_like(cells)),
        cells_norm_(cells, w.gain_c, w.bias_c) {}

  const Tensor& normed_cells() const { return cells_norm_.y; }
  NormBackwardStep<T, A> step(const BackwardStep<T, A>& step, const NormWeights<T>& weights,
                              int64_t row) const {
    const int64_t first_cell = row * d_normed_cells_.size(1), first_gate = row * h_gates_.size(1);
    return {step, weights, const_data<T>(h_gates_) + first_gate, data<T>(d_h_gates_) + first_gate,
            data<A>(d_normed_cells_) + first_cell};
  }
  // The gradient [R,4H] of W_hh h_{t-1}; the steps of the walk fill it.
  const Tensor& d_h_gates() const { return d_h_gates_; }

  // Returns the gradient [R,4H] of W_ih x, and puts the gradients of gains and bias_c into `grads`.
  Tensor gradients(const Tensor& input, const OptionalTensor& bias, const Tensor& d_gates,
                   Direction& grads) const {
    const auto dtype = input.scalar_type();
    const RowNorm x_norm(at::mm(input, w_.w_ih.t()), w_.gain_ih, bias);
    const auto [d_x_gates, d_gain_ih, d_bias] = x_norm.backward(d_gates);
    const auto d_gain_hh = std::get<1>(RowNorm(h_gates_, w_.gain_hh, {}).backward(d_gates));
    const auto [d_c, d_gain_c, d_bias_c] = cells_norm_.backward(d_normed_cells_);
    grads.gain_ih = d_gain_ih.to(dtype), grads.gain_hh = d_gain_hh.to(dtype);
    grads.gain_c = d_gain_c.to(dtype), grads.bias_c = d_bias_c.to(dtype);
    return d_x_gates.to(dtype);
  }

 private:
  const Direction& w_;
  Tensor h_gates_, d_h_gates_, d_normed_cells_;
  RowNorm cells_norm_;
};

}  // namespace fastlstm
