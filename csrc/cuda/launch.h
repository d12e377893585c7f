// The interface of the stepwise kernels. No function here waits for the GPU, allocates memory or
// uses another stream.
#pragma once
#include "../equations/layer_norm_step.h"
#include "dtypes.h"

namespace fastlstm {

// Launches one step of the stepwise engine for all rows and units. S is ForwardStep,
// ProjectionForwardStep, NormForwardStep, or one of the three for backward.
template <template <typename, typename> class S, typename T, typename A>
cudaError_t launch_step(const S<T, A>& step, cudaStream_t stream);

// Sets `capability` to the compute capability, 10 * major + minor, for which the kernels that the
// current device runs were compiled. Returns an error if the build has none for the device.
cudaError_t compiled_capability(int* capability);

}  // namespace fastlstm
