// CUDA's runtime, and the emulator's names that the test cases of tests/simt use.
#pragma once
#include <cuda_runtime.h>

namespace simt {
inline unsigned& seed() {
  static unsigned value = 1;
  return value;
}
}  // namespace simt

namespace runtime {
constexpr uint32_t kWaitLimit = 10'000;  // the value of Sequence::wait_limit, in milliseconds
struct Runtime {
  int shared_bytes = 227 * 1024;
};
inline Runtime& state() {
  static Runtime value;
  return value;
}
}  // namespace runtime
