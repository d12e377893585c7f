// The CUDA types in the interface of the launchers: stream, error code and the 16-bit floats. If
// FASTLSTM_EMULATOR is defined they come from tests/simt/simt.h and cpu/half.h, so that a plain C++
// compiler can build the same .cu files.
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
