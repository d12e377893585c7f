#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push( \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")
#endif
#define FASTLSTM_ISA avx512
#define FASTLSTM_FMA  // which a pragma does not tell the preprocessor
#define FASTLSTM_VECTOR_BYTES 64
#include "cpu/targets/avx512.h"

#include "cpu/targets/kernels_table.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
