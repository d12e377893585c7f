// Gradients that can be differentiated again. Python computes them: the Python module sets the
// function below (op/module.cpp). It stays nullptr in a program without Python (examples/cpp).
#pragma once
#include <vector>

#include "core/call.h"

namespace fastlstm {

// Returns the gradients of input, h_0, c_0 and the weights. `result_gradients` are the gradients of
// output, h_n, c_n and cells; a missing gradient is an undefined tensor.
using DifferentiableGradients =
    std::vector<OptionalTensor>(const std::vector<Tensor>& result_gradients, const LstmCall& call);
inline DifferentiableGradients* differentiable_gradients = nullptr;

}  // namespace fastlstm
