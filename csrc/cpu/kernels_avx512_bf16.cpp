// bfloat16 by the dot product instructions of AVX512_BF16.
#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(                                                          \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma"))), \
    apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")
#endif
#define FASTLSTM_ISA avx512_bf16
#define FASTLSTM_VECTOR_BYTES 64
#define FASTLSTM_BFLOAT16_PAIRS
#include "kernels.h"
#include "packing_kernels.h"
#include "tiled_kernels.h"
#include "unpacked_kernels.h"

namespace fastlstm {
namespace avx512_bf16 {

extern const TiledKernels<bfloat16, float> tiled;
const TiledKernels<bfloat16, float> tiled = {Vec<float>::lanes,
                                             kRows,
                                             pack,
                                             transpose,
                                             multiply<bfloat16, float, float>,
                                             multiply_unpacked<bfloat16, float>,
                                             multiply<bfloat16, float, bfloat16>,
                                             sum_rows<bfloat16, float>,
                                             forward<bfloat16, float>,
                                             backward<bfloat16, float>};

}  // namespace avx512_bf16
}  // namespace fastlstm
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
