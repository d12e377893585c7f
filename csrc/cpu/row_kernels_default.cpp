// Whatever the compiler takes for the baseline of the target.
#define FASTLSTM_ISA baseline
#include "row_kernels_table.h"
