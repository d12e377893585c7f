// One step of the stepwise engine on the CPU: all rows, in parallel.
#pragma once
#include "../lstm_params.h"
#include "half.h"

namespace fastlstm {

template <typename T, typename A>
void step_forward(const StepForward<T, A>& step);
template <typename T, typename A>
void step_backward(const StepBackward<T, A>& step);

}  // namespace fastlstm
