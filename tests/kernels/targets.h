// The kernel tables that this processor can run, and where their products come from.
#pragma once
#include <string>
#include <vector>

#include "cpu/targets/kernels.h"

namespace fastlstm {
#if defined(__x86_64__)
namespace avx_vnni {
extern const Product<int8> int8_weights;
}
namespace avx512_vnni {
extern const Product<int8> int8_weights;
}
namespace avx512_bf16 {
extern const Product<bfloat16> product;
}
#elif defined(__aarch64__)
namespace neon_dotprod {
extern const Product<int8> int8_weights;
}
namespace neon_bf16 {
extern const Product<bfloat16> product;
}
#endif
}  // namespace fastlstm

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

// The instruction set of a product: that of its table, or an optional one.
template <typename T>
std::string target_of(const fastlstm::Product<T>& product, const char* table) {
  const void* const at = &product;
#if defined(__x86_64__)
  if (at == &fastlstm::avx_vnni::int8_weights) return "avx_vnni";
  if (at == &fastlstm::avx512_vnni::int8_weights) return "avx512_vnni";
  if (at == &fastlstm::avx512_bf16::product) return "avx512_bf16";
#elif defined(__aarch64__)
  if (at == &fastlstm::neon_dotprod::int8_weights) return "neon_dotprod";
  if (at == &fastlstm::neon_bf16::product) return "neon_bf16";
#endif
  return table;
}

}  // namespace testing
