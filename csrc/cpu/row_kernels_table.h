// The loops of row_kernels.h for all dtypes, as one table per instruction set.
#include "row_kernels.h"
#include "step_kernels.h"

namespace fastlstm {
namespace FASTLSTM_ISA {

extern const RowKernelTable table;
const RowKernelTable table = {{forward<float, float>, backward<float, float>},
                              {forward<double, double>, backward<double, double>},
                              {forward<bfloat16, float>, backward<bfloat16, float>},
                              {forward<float16, float>, backward<float16, float>}};

}  // namespace FASTLSTM_ISA
}  // namespace fastlstm
