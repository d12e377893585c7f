// The gradients of W_ih, W_hh and the biases: products of the gates' gradients with the input and
// with h_{t-1} as W_hh saw it, summed over chunks of steps. (W_hr's is the projection's.)
#pragma once
#include <utility>
#include <vector>

#include "cpu/products/packed_matrix.h"
#include "op/layer.h"

namespace fastlstm {

template <typename T>
class WeightGradients {
  using A = State_t<T>;

 public:
  explicit WeightGradients(const Layer& layer)
      : sizes_(layer.sizes()),
        w_ih_(at::empty({4 * sizes_.hidden_size, sizes_.input_size}, layer.state_options())),
        w_hh_(at::empty({4 * sizes_.hidden_size, sizes_.output_size}, layer.state_options())) {
    if (layer.has_bias()) bias_ = at::empty({4 * sizes_.hidden_size}, layer.state_options());
  }

  // Rows of some steps, the first of all steps if not `accumulate`; h_prev may be fewer, if those
  // of the others are zero.
  void add(const std::vector<const T*>& d_gates, std::vector<const T*> x,
           std::vector<const T*> h_prev, bool accumulate) {
    multiply_transposed<T>(d_gates, 4 * sizes_.hidden_size,
                           {{std::move(x), sizes_.input_size, data<A>(w_ih_)},
                            {std::move(h_prev), sizes_.output_size, data<A>(w_hh_)}},
                           bias_.defined() ? data<A>(bias_) : nullptr, accumulate);
  }

  // W_ih, W_hh, and the biases' if there are biases.
  std::vector<Tensor> all() const {
    std::vector<Tensor> gradients{w_ih_, w_hh_};
    if (bias_.defined()) gradients.push_back(bias_);
    return gradients;
  }

 private:
  Sizes sizes_;
  Tensor w_ih_, w_hh_, bias_;
};

}  // namespace fastlstm
