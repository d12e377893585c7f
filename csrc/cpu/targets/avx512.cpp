// The target AVX-512.
#if defined(__x86_64__)
#include "cpu/targets/target_pragma.h"
FASTLSTM_TARGET("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")
#define FASTLSTM_ISA avx512
#define FASTLSTM_FMA  // the pragma above does not define __FMA__
#define FASTLSTM_VECTOR_BYTES 64
#include "cpu/targets/avx512.h"
#include "cpu/targets/kernels_table.h"
FASTLSTM_TARGET_END
#endif
