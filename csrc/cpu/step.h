// One step of the stepwise engine on the CPU: all rows, in parallel.
#pragma once
#include "cpu/half.h"
#include "equations/layer_norm_step.h"

namespace fastlstm {

template <typename T, typename A>
void run_step(const StepForward<T, A>& step);
template <typename T, typename A>
void run_step(const StepBackward<T, A>& step);
template <typename T, typename A>
void run_step(const NormForward<T, A>& step);
template <typename T, typename A>
void run_step(const NormBackward<T, A>& step);

}  // namespace fastlstm
