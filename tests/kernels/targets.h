// What the tests of the CPU kernels share: the kernels that this processor can run, and random
// cases.
#pragma once
#include <random>
#include <vector>

#include "../simt/harness.h"
#include "cpu/targets/kernels.h"
#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#if defined(__x86_64__)
namespace fastlstm::amx_emulated {
AmxGemms amx_gemms();  // amx_emulated.cpp
}
#endif

namespace testing {

// Returns the tables from the baseline to the newest instruction set.
inline std::vector<fastlstm::KernelTable> tables() {
  std::vector<fastlstm::KernelTable> all{fastlstm::kernels_for_machine("DEFAULT")};
#if defined(__x86_64__)
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (avx2) all.push_back(fastlstm::kernels_for_machine("AVX2"));
  if (avx512) all.push_back(fastlstm::kernels_for_machine("AVX512"));
#endif
  return all;
}

// Whether the processor has AMX with bfloat16 and int8, and the system lets this process use it.
inline bool has_amx() {
#if defined(__x86_64__) && defined(__linux__)
  unsigned a, b, c, d;
  const bool has = __get_cpuid_count(7, 0, &a, &b, &c, &d) && d >> 22 & 1 && (d >> 24 & 3) == 3;
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  return has && syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

class Random {
 public:
  explicit Random(unsigned seed) : engine_(seed) {}
  int64_t between(int64_t first, int64_t last) {
    return first + int64_t(engine_() % (last - first + 1));
  }
  bool coin() { return engine_() % 2; }
  template <typename T>
  T number() {
    return from_double<T>(normal_(engine_));
  }

 private:
  std::mt19937 engine_;
  std::normal_distribution<double> normal_;
};

// Registers a case that calls body(seed) for many seeds.
template <typename Body>
void add_random_case(const std::string& name, const Body& body) {
  Case(name, [body] {
    for (unsigned seed = 1; seed <= 60; ++seed) body(seed);
  });
}

// Returns pointers to `count` rows, which are `stride` elements apart.
template <typename Pointer = void*, typename T>
std::vector<Pointer> rows_of(T* first, int64_t count, int64_t stride) {
  std::vector<Pointer> rows;
  for (int64_t r = 0; r < count; ++r) rows.push_back(first + r * stride);
  return rows;
}

}  // namespace testing
