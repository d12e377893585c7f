#include "cpu/targets/kernels.h"

#include <ATen/Version.h>

#include <string>

#include "cpu/products/brgemm.h"

namespace fastlstm {

namespace baseline {
extern const KernelTable table;
}
#if defined(__x86_64__)
namespace avx2 {
extern const KernelTable table;
}
namespace avx512 {
extern const KernelTable table;
}
namespace avx_vnni {
extern const Product<int8> int8_weights;
}
namespace avx512_vnni {
extern const Product<int8> int8_weights;
}
namespace avx512_bf16 {
extern const Product<bfloat16> product;
extern const Cell<bfloat16> cell;
}  // namespace avx512_bf16
#endif

static KernelTable choose() {
#if defined(__x86_64__)
  const std::string capability = at::get_cpu_capability();
  if (capability.rfind("AVX512", 0) == 0) {
    KernelTable table = avx512::table;
    const auto best = [](const auto& tiles) { return has_amx() ? brgemm_product(tiles) : &tiles; };
    if (__builtin_cpu_supports("avx512vnni")) table.int8_weights = best(avx512_vnni::int8_weights);
    if (__builtin_cpu_supports("avx512bf16")) {
      table.BFloat16.product = table.bfloat16_weights = best(avx512_bf16::product);
      table.BFloat16.cell = &avx512_bf16::cell;
    }
    return table;
  }
  if (capability == "AVX2") {
    KernelTable table = avx2::table;
    if (__builtin_cpu_supports("avxvnni")) table.int8_weights = &avx_vnni::int8_weights;
    return table;
  }
#endif
  return baseline::table;
}

const KernelTable& kernel_table() {
  static const KernelTable chosen = choose();
  return chosen;
}

}  // namespace fastlstm
