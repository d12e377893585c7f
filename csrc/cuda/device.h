// The few words that the kernels use beyond plain C++. nvcc gets the real ones; with
// FASTLSTM_EMULATOR a C++ compiler gets their twins on the CPU (tests/simt/simt.h), so that the
// same .cu files run under a debugger, ASan or UBSan on a machine without a GPU.
#pragma once
#include "dtypes.h"

#if !defined(FASTLSTM_EMULATOR)
#include <cuda_runtime.h>
#endif

namespace fastlstm {

// Lets the kernel's own signature decide the types of the arguments.
template <typename P>
struct Parameter {
  using type = P;
};

#if defined(FASTLSTM_EMULATOR)

template <typename... P>
cudaError_t launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t,
                   typename Parameter<P>::type... arguments) {
  return simt::launch(grid, block, shared_bytes, simt::kBlocksInTurn,
                      [=] { kernel(arguments...); });
}

#else

template <typename... P>
cudaError_t launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes,
                   cudaStream_t stream, typename Parameter<P>::type... arguments) {
  kernel<<<grid, block, shared_bytes, stream> > >(arguments...);
  return cudaGetLastError();
}

#endif

}  // namespace fastlstm
