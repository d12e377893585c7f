// Layer normalisation around the stepwise walk, in ATen: what stands outside the loop (the norm of
// W_ih x, the gradients of gains and biases) and what the row kernels of layer_norm_step.h get.
// Norms are computed in the state dtype.
#pragma once
#include "layer.h"
#include "layer_norm_step.h"

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

// What the row kernels need besides a plain step.
template <typename T, typename A>
class StepNorms {
 public:
  StepNorms(const Direction& w, int64_t rows)
      : gain_hh_(w.gain_hh.contiguous()),
        gain_c_(w.gain_c.contiguous()),
        bias_c_(w.bias_c.contiguous()),
        cells_(at::empty({rows, gain_c_.size(0)},
                         gain_c_.options().dtype(state_dtype(gain_c_.scalar_type())))) {}

  NormForward<T, A> forward(const StepForward<T, A>& step) const {
    return {step,
            gain(),
            static_cast<const T*>(gain_c_.const_data_ptr()),
            bias(),
            static_cast<A*>(cells_.data_ptr()),
            inverse_size()};
  }
  // h_gates, d_h_gates [R,4H] and d_cells [R,H] of all flat rows, of which the step begins at one.
  NormBackward<T, A> backward(const StepBackward<T, A>& step, int64_t offset, const Tensor& h_gates,
                              const Tensor& d_h_gates, const Tensor& d_cells) const {
    return {step,
            gain(),
            static_cast<const T*>(gain_c_.const_data_ptr()),
            bias(),
            static_cast<const T*>(h_gates.const_data_ptr()) + offset * h_gates.size(1),
            static_cast<T*>(d_h_gates.data_ptr()) + offset * d_h_gates.size(1),
            static_cast<A*>(d_cells.data_ptr()) + offset * d_cells.size(1),
            inverse_size()};
  }

 private:
  A inverse_size() const { return A(1) / A(gain_c_.size(0)); }
  const T* gain() const { return static_cast<const T*>(gain_hh_.const_data_ptr()); }
  const T* bias() const { return static_cast<const T*>(bias_c_.const_data_ptr()); }

  Tensor gain_hh_, gain_c_, bias_c_, cells_;
};

}  // namespace fastlstm
