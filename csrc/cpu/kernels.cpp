#include "kernels.h"

#include <ATen/Version.h>

#include <string>

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
namespace avx512_bf16 {
extern const TiledKernels<bfloat16, float> tiled;
}
#endif

static const KernelTable& choose() {
#if defined(__x86_64__)
  const std::string capability = at::get_cpu_capability();
  if (capability.rfind("AVX512", 0) == 0) return avx512::table;
  if (capability == "AVX2") return avx2::table;
#endif
  return baseline::table;
}

const KernelTable& kernels() {
  static const KernelTable& chosen = choose();
  return chosen;
}

const TiledKernels<bfloat16, float>* bfloat16_kernels() {
#if defined(__x86_64__)
  static const bool serves =
      &kernels() == &avx512::table && __builtin_cpu_supports("avx512bf16") != 0;
  return serves ? &avx512_bf16::tiled : nullptr;
#else
  return nullptr;
#endif
}

}  // namespace fastlstm
