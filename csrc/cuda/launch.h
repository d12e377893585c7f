// The interface of the stepwise kernels: they take structs of pointers and a stream, and return a
// CUDA error code. No function here waits for the GPU, allocates memory or uses another stream.
#pragma once
#include "../equations/layer_norm_step.h"
#include "dtypes.h"

namespace fastlstm {

// Launches one step of the stepwise engine for all rows and units. S is ForwardStep,
// ProjectionForwardStep, NormForwardStep, or one of the three for backward. T and A are the types
// of a row of dtype_list.h.
template <template <typename, typename> class S, typename T, typename A>
cudaError_t launch_step(const S<T, A>& step, cudaStream_t stream);

// Finds the kernels that the current device would run, and sets `capability` to the compute
// capability that they were compiled for, as 10 * major + minor. Returns
// cudaErrorNoKernelImageForDevice if the build has no code for the device.
cudaError_t compiled_capability(int* capability);

}  // namespace fastlstm
