// The stepwise kernels. No function waits for the GPU, allocates memory or uses another stream.
#pragma once
#include "../equations/layer_norm_step.h"
#include "dtypes.h"

namespace fastlstm {

// Launches one step of the stepwise engine for all rows and units. S is ForwardStep,
// ProjectionForwardStep, NormForwardStep, or one of the three for backward.
template <template <typename, typename> class S, typename T, typename A>
cudaError_t launch_step(const S<T, A>& step, cudaStream_t stream);

// Sets `capability` to 10 * major + minor of the architecture for which the kernels for the current
// device were compiled. Returns an error if the build has no kernels for the device.
cudaError_t compiled_capability(int* capability);

}  // namespace fastlstm
