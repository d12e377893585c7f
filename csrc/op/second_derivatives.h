// Gradients that can be differentiated again. Only the Python module has them (op/module.cpp), so
// that the ops can be built into a program without Python (examples/cpp).
#pragma once
#include <vector>

#include "core/call.h"

namespace fastlstm {

// Returns the gradients of input, h_0, c_0 and the weights. `of_results` are the gradients of
// output, h_n, c_n and cells; a missing gradient is an undefined tensor.
using DifferentiableGradients = std::vector<OptionalTensor>(const std::vector<Tensor>& of_results,
                                                            const LstmCall& call);
inline DifferentiableGradients* differentiable_gradients = nullptr;

}  // namespace fastlstm
