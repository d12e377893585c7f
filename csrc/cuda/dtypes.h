// The CUDA types that cross into the launchers: stream, error code and the 16-bit floats. With
// FASTLSTM_EMULATOR defined they are those of tests/simt/simt.h and of the CPU, so that a plain C++
// compiler builds the same .cu files.
#pragma once

#if defined(FASTLSTM_EMULATOR)
#include "../cpu/half.h"
#include "simt.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>
namespace fastlstm {
using bfloat16 = __nv_bfloat16;
using float16 = __half;
}  // namespace fastlstm
#endif
