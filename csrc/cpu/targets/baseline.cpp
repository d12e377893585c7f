// Whatever the compiler takes for the baseline of the target: 16-byte vectors on x86-64 and arm64.
#define FASTLSTM_ISA baseline
#define FASTLSTM_VECTOR_BYTES 16
#include "cpu/targets/baseline.h"

#include "cpu/targets/kernels_table.h"
