// One step of the stepwise engine on the CPU: all rows, in parallel.
#pragma once
#include "../layer_norm_step.h"
#include "half.h"

namespace fastlstm {

template <typename T, typename A>
void step_forward(const StepForward<T, A>& step);
template <typename T, typename A>
void step_backward(const StepBackward<T, A>& step);

template <typename T, typename A>
void step_forward_normed(const NormForward<T, A>& step);
template <typename T, typename A>
void step_backward_normed(const NormBackward<T, A>& step);

}  // namespace fastlstm
