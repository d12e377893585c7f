// The tiled engine: the whole walk of a layer on the CPU, its weights packed into panels, the cell
// equations applied while the gates are still in registers. Every shape and option, in the dtypes
// instantiated; bfloat16 without projections.
#pragma once
#include "../layer.h"

namespace fastlstm {

// A dense batch of one step without anything to save: decoding, reinforcement learning.
template <typename T>
ForwardResult one_step_forward(const Layer& layer);
template <typename T>
ForwardResult tiled_forward(const Layer& layer, bool save_cells, bool save_gates);
template <typename T>
BackwardResult tiled_backward(const Layer& layer, const Saved& saved, const OutputGrads& grads,
                              bool input_needs_grad, bool state_needs_grad, bool per_row);

}  // namespace fastlstm
