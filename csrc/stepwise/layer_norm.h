// Layer normalization around the stepwise walk, in ATen: what stands outside the loop (the norm of
// W_ih x, the gradients of gains and biases) and what the row kernels of layer_norm_step.h get.
// Norms are computed in the state dtype.
#pragma once
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "core/layer_call.h"
#include "equations/layer_norm_step.h"
#include "pointers.h"

namespace fastlstm {

// y = (x - mean) * scale * gain + bias over the last dimension of x [R,size].
class RowNorm {
 public:
  RowNorm(const Tensor& x, const Tensor& gain, const OptionalTensor& bias)
      : x_(x.to(state_dtype(x.scalar_type()))), gain_(gain.to(x_.scalar_type())) {
    const OptionalTensor shift = bias ? OptionalTensor(bias->to(x_.scalar_type())) : std::nullopt;
    std::tie(y_, mean_, scale_) =
        at::native_layer_norm(x_, {x.size(-1)}, gain_, shift, kNormEpsilon);
  }
  const Tensor& y() const { return y_; }
  // The gradients of x, gain and bias from that of y.
  std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& d_y) const {
    return at::native_layer_norm_backward(d_y.to(x_.scalar_type()), x_, {x_.size(-1)}, mean_,
                                          scale_, gain_, gain_, {true, true, true});
  }

 private:
  Tensor x_, gain_, y_, mean_, scale_;
};

// The weights of the norms for the row kernels, beside a step without them.
template <typename T, typename A>
class StepNorms {
 public:
  explicit StepNorms(const Direction& w)
      : gain_hh_(w.gain_hh.contiguous()),
        gain_c_(w.gain_c.contiguous()),
        bias_c_(w.bias_c.contiguous()) {}

  NormWeights<T> weights() const {
    return {const_data<T>(gain_hh_), const_data<T>(gain_c_), const_data<T>(bias_c_)};
  }
  NormForwardStep<T, A> forward(const ForwardStep<T, A>& step) const { return {step, weights()}; }

 private:
  Tensor gain_hh_, gain_c_, bias_c_;
};

// Backward of one direction: what the walk needs, and the gradients after it.
template <typename T, typename A>
class NormsBackward {
 public:
  NormsBackward(const Direction& w, const Tensor& h_prev, const Tensor& cells)
      : w_(w),
        norms_(w),
        h_gates_(at::mm(h_prev, w.w_hh.t())),
        d_h_gates_(at::empty_like(h_gates_)),
        d_normed_cells_(at::empty_like(cells)) {}

  // The cells [R,H], normalized.
  const Tensor& normalize_cells(const Tensor& cells) {
    return cells_.emplace(cells, w_.gain_c, w_.bias_c).y();
  }
  NormBackwardStep<T, A> step(const BackwardStep<T, A>& step, int64_t offset) const {
    const auto at = [&](const Tensor& rows) { return offset * rows.size(1); };
    return {step, norms_.weights(), const_data<T>(h_gates_) + at(h_gates_),
            data<T>(d_h_gates_) + at(d_h_gates_), data<A>(d_normed_cells_) + at(d_normed_cells_)};
  }
  // dL/d(W_hh h_{t-1}) of all rows, after the walk.
  const Tensor& d_h_gates() const { return d_h_gates_; }

  // dL/d(W_ih x) of all rows; the gradients of gain_ih, gain_hh, gain_c and bias_c go to
  // `gradients`.
  Tensor gradients(const Tensor& input, const OptionalTensor& bias, const Tensor& d_gates,
                   at::ScalarType dtype, Direction& gradients) const {
    const RowNorm x_norm(at::mm(input, w_.w_ih.t()), w_.gain_ih, bias);
    const auto [d_x, d_gain_ih, d_bias] = x_norm.backward(d_gates);
    const auto d_gain_hh = std::get<1>(RowNorm(h_gates_, w_.gain_hh, {}).backward(d_gates));
    const auto [d_c, d_gain_c, d_bias_c] = cells_->backward(d_normed_cells_);
    gradients.gain_ih = d_gain_ih.to(dtype), gradients.gain_hh = d_gain_hh.to(dtype);
    gradients.gain_c = d_gain_c.to(dtype), gradients.bias_c = d_bias_c.to(dtype);
    return d_x.to(dtype);
  }

 private:
  const Direction& w_;
  StepNorms<T, A> norms_;
  Tensor h_gates_, d_h_gates_, d_normed_cells_;
  std::optional<RowNorm> cells_;
};

}  // namespace fastlstm
