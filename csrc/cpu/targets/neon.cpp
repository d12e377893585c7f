// The target NEON.
#if defined(__aarch64__)
#define FASTLSTM_ISA neon
#define FASTLSTM_VECTOR_BYTES 16
#include "cpu/targets/neon.h"

#include "cpu/targets/kernels_table.h"
#endif
