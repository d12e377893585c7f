// Backward for many gradients of one forward at once.
#pragma once
#include "core/call.h"

namespace fastlstm {

// lstm_backward where some tensors hold N samples along their first dimension, from Python: its
// tensors in the order of the schema, but the weights last, and which of them are batched. The
// results in one list, N along the first dimension of each.
std::vector<Tensor> lstm_backward_of_samples(const std::vector<OptionalTensor>& tensors,
                                             const std::vector<bool>& batched,
                                             const std::string& layout, bool input_needs_grad,
                                             bool state_needs_grad, bool per_row,
                                             const std::string& engine);

}  // namespace fastlstm
