// The border between ATen and the kernels: plain structs of pointers and a stream in, a CUDA error
// code out. Nothing here synchronises, allocates or touches another stream.
#pragma once
#include "../equations/layer_norm_step.h"
#include "dtypes.h"

namespace fastlstm {

// One step of the stepwise engine, all rows and units (lstm_step.h). T, A: double, double;
// float, float; bfloat16, float; float16, float.
template <typename T, typename A>
cudaError_t launch_step_forward(const StepForward<T, A>& step, cudaStream_t stream);
template <typename T, typename A>
cudaError_t launch_step_backward(const StepBackward<T, A>& step, cudaStream_t stream);

// The same with layer normalisation (layer_norm_step.h).
template <typename T, typename A>
cudaError_t launch_step_forward_normed(const NormForward<T, A>& step, cudaStream_t stream);
template <typename T, typename A>
cudaError_t launch_step_backward_normed(const NormBackward<T, A>& step, cudaStream_t stream);

}  // namespace fastlstm
