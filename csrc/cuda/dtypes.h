// The types in the interface of the launchers: streams, error codes and 16-bit floats, of CUDA or,
// with FASTLSTM_EMULATOR, of tests/simt/simt.h and cpu/half.h.
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
