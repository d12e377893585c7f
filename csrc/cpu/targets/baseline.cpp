// The instruction set that the compiler uses without flags: on x86-64, vectors of 16 bytes.
#if !defined(__aarch64__)
#define FASTLSTM_ISA baseline
#define FASTLSTM_VECTOR_BYTES 16
#include "cpu/targets/baseline.h"

#include "cpu/targets/kernels_table.h"
#endif
