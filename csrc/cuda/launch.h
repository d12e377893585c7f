// The interface between ATen and the stepwise kernels: plain structs of pointers and a stream in, a
// CUDA error code out. Nothing here synchronizes, allocates or touches another stream.
#pragma once
#include "../equations/layer_norm_step.h"
#include "dtypes.h"

namespace fastlstm {

// One step of the stepwise engine, all rows and units. S: ForwardStep, ProjectionForwardStep,
// NormForwardStep, or one of the three for backward. T, A: the dtypes of dtype_list.h.
template <template <typename, typename> class S, typename T, typename A>
cudaError_t launch_step(const S<T, A>& step, cudaStream_t stream);

// For which compute capability the code was compiled that the current device runs, as
// 10 * major + minor; cudaErrorNoKernelImageForDevice where the build has none for it.
cudaError_t compiled_capability(int* capability);

}  // namespace fastlstm
