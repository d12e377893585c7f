// The gradients of weights that the steps of a loop share: an LSTMCell, or an LSTM with T = 1, on
// the CPU. Autograd would write a matrix as large as the weights for every step, and add them up.
// Here a step leaves the gradients of its gates to a node that stands before the weights, and the
// node multiplies the rows of many steps at once.
#pragma once
#include <torch/csrc/autograd/function.h>

#include <map>
#include <mutex>
#include <unordered_map>
#include <utility>
#include <vector>

#include "call.h"

namespace fastlstm {

class StepWeights : public torch::autograd::Node {
 public:
  using Pointer = decltype(torch::autograd::Edge::function);  // not the same in every torch

  // Whether a call is such a step; and whether tensors, where defined, hold values.
  static bool serves(const LstmCall& call);
  static bool has_values(const torch::autograd::variable_list& tensors);

  // Puts it behind the node of a step, whose inputs from `first` on are the weights.
  static void insert_behind(torch::autograd::Node& step, size_t first, at::TensorList weights);

  // What a step's backward calls in place of returning gradients.
  static void add(at::TensorList weights, StepFactors step);

  // Compiled autograd gives tensors without values, whose gradients a step returns as usual.
  void compiled_args(torch::dynamo::autograd::CompiledNodeArgs&) const override {}
  torch::autograd::variable_list apply_with_saved(
      const torch::autograd::variable_list& gradients,
      torch::dynamo::autograd::SwapSavedVariables&) override {
    return gradients;
  }

  ~StepWeights() override;

 private:
  // Where the gradients of the weights go: weights that agree in this are the same to autograd.
  using Destinations = std::vector<std::pair<torch::autograd::Node*, uint32_t>>;
  struct Registry {
    std::mutex mutex;
    std::map<Destinations, StepWeights*> nodes;
  };
  static Registry& registry();
  // The node of these weights, the same for all steps as long as a graph holds it.
  static Pointer of(at::TensorList weights);

  // The sum of one backward pass.
  class Sum {
   public:
    void add(StepFactors step);
    std::vector<Tensor> result(at::ScalarType dtype);

   private:
    void multiply();
    std::vector<StepFactors> steps_;
    int64_t rows_ = 0;
    std::vector<Tensor> sums_;
  };

  torch::autograd::variable_list apply(torch::autograd::variable_list&& gradients) override;

  Destinations destinations_;
  std::mutex mutex_;
  std::unordered_map<int, Sum> sums_;  // by the backward pass, of which there may be several
};

}  // namespace fastlstm
