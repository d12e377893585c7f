// The layer as a composition of differentiable ATen operations: what double backward
// differentiates. The equations are those of lstm_math.h, with at::Tensor as the value type.
#pragma once
#include "core/layer.h"

namespace fastlstm {

// The gradients of `layer` with respect to input, h_0, c_0 and every weight, in this order,
// themselves differentiable (create_graph). Undefined where the tensor needs no gradient.
std::vector<Tensor> differentiable_backward(const Layer& layer, const OutputGrads& grads);

}  // namespace fastlstm
