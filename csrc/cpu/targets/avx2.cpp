// The target AVX2.
#if defined(__x86_64__)
#include "cpu/targets/target_pragma.h"
FASTLSTM_TARGET("avx2,fma,f16c")
#define FASTLSTM_ISA avx2
#define FASTLSTM_FMA  // the pragma above does not define __FMA__
#define FASTLSTM_VECTOR_BYTES 32
#include "cpu/targets/avx2.h"
#include "cpu/targets/kernels_table.h"
FASTLSTM_TARGET_END
#endif
