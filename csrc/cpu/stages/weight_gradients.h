// The gradients of W_ih, W_hh and the biases: products of d_gates with the input and with h_{t-1},
// summed over the steps of a chunk by all threads. (projection.h has the gradient of W_hr.)
// If a chunk has many rows, arithmetic takes the time, otherwise reading and writing the gradients.
#pragma once
#include <algorithm>
#include <functional>
#include <utility>

#include "core/layer_call.h"
#include "core/operators.h"
#include "cpu/gemm/encoded_rows.h"
#include "cpu/gemm/parallel_gemm.h"

namespace fastlstm {

// Returns the options of weight gradients: of dtype T if one product gives the whole gradient and
// rounds it, otherwise of the dtype of the state, in which several products are added.
template <typename T>
at::TensorOptions weight_gradient_options(const CpuPlan& plan, const LayerCall& layer) {
  const Sizes s = layer.sizes();
  const bool one_product = plan.chunk_steps == s.steps && s.steps * s.batch <= kRowsPerSum;
  return one_product && plan.gemm->takes(dtype_of_type<T>) ? layer.input.options()
                                                           : layer.state_options();
}

// The gradients of the weights of one direction.
template <typename T>
class WeightGradients {
  using A = State_t<T>;

 public:
  WeightGradients(const CpuPlan& plan, const LayerCall& layer) : plan_(plan), layer_(layer) {}

  // Returns rows of d_gates [4H] in the format in which add() expects them.
  std::vector<const void*> encode(const std::vector<const T*>& d_gates) const {
    return encoded_d_gates_.encode(d_gates);
  }

  // Adds the rows of a chunk to the gradients, or writes the gradients if not `accumulate`.
  void add(const std::vector<const T*>& d_gates,     // rows [4H]
           const std::vector<const void*>& encoded,  // encode(d_gates)
           const std::vector<const T*>& x,           // rows [I] of the input
           const std::vector<const T*>& h_prev,      // rows [P]; missing rows at the end are zero
           bool accumulate) {
    auto x_rows = encoded_x_.encode(x), h_rows = encoded_h_.encode(h_prev);
    A* grad_bias = grad_bias_.defined() ? data<A>(grad_bias_) : nullptr;
    if (grad_bias && !gemm_.takes(dtype_of_type<T>)) {
      add_to_bias(d_gates, accumulate);  // because `encoded` may be rounded
      grad_bias = nullptr;
    }
    weight_gradient_gemm(gemm_, encoded, width_,
                         {{std::move(x_rows), grad_w_ih_}, {std::move(h_rows), grad_w_hh_}},
                         grad_bias, accumulate);
  }

  // Appends the gradients of W_ih, of W_hh and, if there are biases, of b_ih (b_hh has the same).
  void append_to(std::vector<Tensor>& gradients) const {
    gradients.insert(gradients.end(), {grad_w_ih_, grad_w_hh_});
    if (grad_bias_.defined()) gradients.push_back(grad_bias_);
  }

 private:
  // Adds rows of d_gates to the gradient of the biases, summed in blocks of rows to round less.
  void add_to_bias(const std::vector<const T*>& rows, bool accumulate) {
    constexpr int64_t kMinColumnsPerThread = 64, kBlockRows = 32;
    A* const grad_bias = data<A>(grad_bias_);
    at::parallel_for(0, grad_bias_.numel(), kMinColumnsPerThread, [&](int64_t begin, int64_t end) {
      std::vector<A> total(end - begin), block;
      for (auto row = rows.begin(); row != rows.end();) {
        block.assign(total.size(), A());
        for (const auto last = row + std::min<int64_t>(kBlockRows, rows.end() - row); row != last;
             ++row)
          std::transform(block.begin(), block.end(), *row + begin, block.begin(),
                         [](A sum, T x) { return sum + A(x); });
        std::transform(total.begin(), total.end(), block.begin(), total.begin(), std::plus());
      }
      std::transform(total.begin(), total.end(), grad_bias + begin, grad_bias + begin,
                     [=](A sum, A before) { return accumulate ? before + sum : sum; });
    });
  }

  const CpuPlan& plan_;
  const LayerCall& layer_;
  const GemmKernels& gemm_ = *plan_.gemm;
  const Sizes sizes_ = layer_.sizes();
  const int64_t max_chunk_rows_ = plan_.chunk_steps * sizes_.batch;
  const int64_t width_ = 4 * sizes_.hidden_size;
  const at::TensorOptions options_ = weight_gradient_options<T>(plan_, layer_);
  EncodedRows<T> encoded_d_gates_{gemm_, max_chunk_rows_, width_, /*packs=*/true};
  EncodedRows<T> encoded_x_{gemm_, max_chunk_rows_, sizes_.input_size, /*packs=*/true};
  EncodedRows<T> encoded_h_{gemm_, max_chunk_rows_, sizes_.output_size, /*packs=*/true};
  Tensor grad_w_ih_ = empty_on_huge_pages({width_, sizes_.input_size}, options_);   // [4H,I]
  Tensor grad_w_hh_ = empty_on_huge_pages({width_, sizes_.output_size}, options_);  // [4H,P]
  Tensor grad_bias_ = layer_.has_bias() ? at::empty({width_}, layer_.state_options()) : Tensor();
};

}  // namespace fastlstm
