// The emulator's names that the test cases of tests/simt use, implemented by the interpreter.
#pragma once
#include "machine.h"

namespace simt {
inline unsigned& seed() { return ptx::options().seed; }
}  // namespace simt

namespace runtime {
// The value of Sequence::wait_limit. Each read of the interpreter's clock takes one microsecond.
constexpr uint32_t kWaitLimit = 1'000'000;
struct Runtime {
  int& shared_bytes = ptx::options().shared_bytes;
};
inline Runtime& state() {
  static Runtime r;
  return r;
}
}  // namespace runtime
