// The gradients of weights that the steps of a loop share: an LSTMCell, or an LSTM with T = 1, on
// the CPU. Autograd would write a matrix as large as the weights for every step, and add them up.
// Here a step leaves the gradients of its gates to a node that stands before the weights, and the
// node multiplies the rows of many steps at once.
#pragma once
#include <torch/csrc/autograd/function.h>

#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "core/call.h"

namespace fastlstm {

class StepWeights final : public torch::autograd::Node {
 public:
  using Pointer = decltype(torch::autograd::Edge::function);

  // Whether a call is such a step: plain, both matrices with a gradient, and nothing traces it.
  static bool serves(const LstmCall& call);

  // Puts a node behind that of a step, whose inputs from `first` on are the weights.
  static void insert_behind(torch::autograd::Node& step, size_t first, at::TensorList weights);

  // The node that was put behind the step whose backward runs now; nullptr if there is none, or if
  // the step has to return gradients as usual.
  static StepWeights* behind_current(size_t first, const torch::autograd::variable_list& grads);

  // What that step's backward calls in place of returning gradients of the weights.
  void add(const OneStepFactors& step);

  // Its priority is that of AccumulateGrad: nothing that waits for the weights may run before it.
  StepWeights() : Node(UINT64_MAX) {}

  // Under compiled autograd the steps return gradients as usual.
  void compiled_args(torch::dynamo::autograd::CompiledNodeArgs&) const override {}
  torch::autograd::variable_list apply_with_saved(
      const torch::autograd::variable_list& gradients,
      torch::dynamo::autograd::SwapSavedVariables&) override {
    return gradients;
  }

 private:
  // Steps of a thread share a node, from the first of them to the first backward, if the gradients
  // of their weights go to the same places.
  static Pointer of(at::TensorList weights);

  // The sum of one backward pass.
  class Sum {
   public:
    void add(const OneStepFactors& step);
    std::vector<Tensor> result(at::ScalarType dtype);

   private:
    void multiply();
    std::vector<OneStepFactors> steps_;
    int64_t rows_ = 0;
    std::vector<Tensor> sums_;
  };

  torch::autograd::variable_list apply(torch::autograd::variable_list&& gradients) override;
  std::shared_ptr<Sum> sum_of_this_pass(bool create);

  std::atomic<bool> has_run_ = false;
  std::mutex mutex_;
  // By the backward pass, of which there may be several. A pass owns its sum, also if it fails.
  std::map<int, std::weak_ptr<Sum>> sums_;
};

}  // namespace fastlstm
