// The kernel tables that this processor can run.
#pragma once
#include <vector>

#include "cpu/targets/kernels.h"

namespace testing {

inline std::vector<fastlstm::KernelTable> tables() {
  std::vector<fastlstm::KernelTable> all{fastlstm::own_kernels("DEFAULT")};
#if defined(__x86_64__)
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (avx2) all.push_back(fastlstm::own_kernels("AVX2"));
  if (avx512) all.push_back(fastlstm::own_kernels("AVX512"));
#endif
  return all;
}

}  // namespace testing
