// Many gradients of one forward at once.
#pragma once
#include <string>
#include <vector>

#include "core/call.h"

namespace fastlstm {

// A call of lstm_backward in which some tensors hold N samples along their first dimension.
struct SampledBackward {
  std::vector<OptionalTensor> tensors;  // in the schema's order, but the weights come last
  std::vector<size_t> batched;          // positions in rising order, at least one
  GradientRequest request;
  std::string engine;
};

// The results in one list, N along the first dimension of each.
std::vector<Tensor> backward_of_samples(const SampledBackward& call);

}  // namespace fastlstm
