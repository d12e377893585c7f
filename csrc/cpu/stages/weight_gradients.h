// The gradients of W_ih, W_hh and the biases: products of the gates' gradients with the input and
// with h_{t-1} as W_hh saw it, summed over chunks of steps. (W_hr's is the projection's.)
#pragma once
#include <ATen/Parallel.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "core/layer_call.h"
#include "core/operators.h"
#include "cpu/gemm/encoded_rows.h"
#include "cpu/gemm/weight_gradient_gemm.h"

namespace fastlstm {

template <typename T>
class WeightGradients {
  using A = State_t<T>;

 public:
  // Sums at most `rows` rows at a time, in the dtype of the state.
  WeightGradients(const GemmKernels& gemm, const Sizes& sizes, bool has_bias,
                  const at::TensorOptions& state, int64_t rows)
      : gemm_(gemm),
        sizes_(sizes),
        d_gates_(gemm, rows, 4 * sizes_.hidden_size, /*packs=*/true),
        x_(gemm, rows, sizes_.input_size, /*packs=*/true),
        h_(gemm, rows, sizes_.output_size, /*packs=*/true),
        w_ih_(empty_on_huge_pages({4 * sizes_.hidden_size, sizes_.input_size}, state)),
        w_hh_(empty_on_huge_pages({4 * sizes_.hidden_size, sizes_.output_size}, state)) {
    if (has_bias) bias_ = at::empty({4 * sizes_.hidden_size}, state);
  }

  // Rows of gradients as the product packs them.
  std::vector<const void*> encode(const std::vector<const T*>& d_gates) const {
    return d_gates_.encode(d_gates);
  }

  // Rows of some steps, and `encoded` of them, the first of all steps if not `accumulate`; h_prev
  // may be fewer, if those of the others are zero.
  void add(const std::vector<const T*>& d_gates, const std::vector<const void*>& encoded,
           const std::vector<const T*>& x, const std::vector<const T*>& h_prev, bool accumulate) {
    auto x_rows = x_.encode(x), h_rows = h_.encode(h_prev);
    A* bias = bias_.defined() ? data<A>(bias_) : nullptr;
    if (bias && !gemm_.takes(dtype_of_rows<T>)) {
      add_rows(d_gates, accumulate);  // in full
      bias = nullptr;
    }
    weight_gradient_gemm(gemm_, encoded, 4 * sizes_.hidden_size,
                         {{std::move(x_rows), sizes_.input_size, data<A>(w_ih_)},
                          {std::move(h_rows), sizes_.output_size, data<A>(w_hh_)}},
                         bias, accumulate);
  }

  // W_ih, W_hh, and the biases' if there are biases.
  std::vector<Tensor> all() const {
    std::vector<Tensor> gradients{w_ih_, w_hh_};
    if (bias_.defined()) gradients.push_back(bias_);
    return gradients;
  }

 private:
  // A few rows are summed from zero, then added to the sum, which rounds less.
  void add_rows(const std::vector<const T*>& rows, bool accumulate) {
    constexpr int64_t kColumns = 64;
    constexpr size_t kRows = 32;
    A* const bias = data<A>(bias_);
    at::parallel_for(0, bias_.numel(), kColumns, [&](int64_t begin, int64_t end) {
      std::vector<A> sums(end - begin, A(0)), few(end - begin);
      for (size_t first = 0; first < rows.size(); first += kRows) {
        std::fill(few.begin(), few.end(), A(0));
        for (size_t r = first; r < std::min(first + kRows, rows.size()); ++r)
          for (int64_t n = begin; n < end; ++n) few[n - begin] += A(rows[r][n]);
        for (int64_t n = begin; n < end; ++n) sums[n - begin] += few[n - begin];
      }
      for (int64_t n = begin; n < end; ++n)
        bias[n] = accumulate ? bias[n] + sums[n - begin] : sums[n - begin];
    });
  }

  const GemmKernels& gemm_;
  Sizes sizes_;
  EncodedRows<T> d_gates_, x_, h_;
  Tensor w_ih_, w_hh_, bias_;
};

}  // namespace fastlstm
