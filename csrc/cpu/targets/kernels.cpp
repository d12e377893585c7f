#include "cpu/targets/kernels.h"

#include <ATen/Version.h>

#include "cpu/products/brgemm.h"

namespace fastlstm {

static KernelTable choose() {
  KernelTable table = own_kernels(at::get_cpu_capability().c_str());
  if (table.BFloat16.product && uses_brgemm()) {
    table.BFloat16.product = table.bfloat16_weights = brgemm_product(*table.bfloat16_weights);
    if (table.int8_weights->excess == kUnsigned)  // AMX implies VNNI, unless a machine hides it
      table.int8_weights = brgemm_product(*table.int8_weights);
  }
  return table;
}

const KernelTable& kernel_table() {
  static const KernelTable chosen = choose();
  return chosen;
}

}  // namespace fastlstm
