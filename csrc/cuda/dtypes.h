// The CUDA types that cross into the launchers: stream, error code and the 16-bit floats. With
// FASTLSTM_EMULATOR defined they are the host twins of tests/simt/simt.h, so that a plain C++
// compiler builds the same .cu files.
#pragma once

#if defined(FASTLSTM_EMULATOR)
#include "simt.h"
namespace fastlstm {
using bfloat16 = simt::bfloat16;
using float16 = simt::float16;
}  // namespace fastlstm
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>
namespace fastlstm {
using bfloat16 = __nv_bfloat16;
using float16 = __half;
}  // namespace fastlstm
#endif
