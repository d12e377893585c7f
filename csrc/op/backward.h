// Backward in other ways than one call of the op: with derivatives of its own, or for many
// gradients of one forward at once.
#pragma once
#include "core/layer.h"

namespace fastlstm {

// The gradients of `layer` with respect to input, h_0, c_0 and every weight, in this order,
// themselves differentiable (create_graph): the layer is composed of ATen operations, by the
// equations of lstm_math.h over at::Tensor. Undefined where the tensor needs no gradient.
std::vector<Tensor> differentiable_backward(const Layer& layer, const OutputGrads& grads);

// lstm_backward where some tensors hold N samples along their first dimension, from Python: its
// tensors in the order of the schema, but the weights last, and which of them are batched. The
// results in one list, N along the first dimension of each.
std::vector<Tensor> lstm_backward_of_samples(const std::vector<OptionalTensor>& tensors,
                                             const std::vector<bool>& batched,
                                             const std::string& layout, bool input_needs_grad,
                                             bool state_needs_grad, bool per_row,
                                             const std::string& engine);

}  // namespace fastlstm
