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

}  // namespace fastlstm
