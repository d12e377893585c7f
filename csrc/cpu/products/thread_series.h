// What a thread does before its first and after its last product of a series.
#pragma once
#include "cpu/targets/kernels.h"

namespace fastlstm {

// Processors compute with subnormal numbers up to a hundred times more slowly, and the states
// behind shut gates and the gradients of long sequences become such numbers. In a series a
// subnormal result is zero; operands may be subnormal, since a product with a large number is not.
class FlushSubnormals {
#if defined(__x86_64__)
 public:
  FlushSubnormals() { __builtin_ia32_ldmxcsr(mode_ | 0x8000); }
  ~FlushSubnormals() { __builtin_ia32_ldmxcsr(mode_); }

 private:
  const unsigned mode_ = __builtin_ia32_stmxcsr();
#endif
};

// A product may need a thread set up (tile registers, a library's context). Nothing within a thread
// of a series may throw.
template <typename T>
class ThreadSeries {
 public:
  ThreadSeries() {
    if (product().begin_thread) product().begin_thread();
  }
  ~ThreadSeries() {
    if (product().end_thread) product().end_thread();
  }
  ThreadSeries(const ThreadSeries&) = delete;
  ThreadSeries& operator=(const ThreadSeries&) = delete;

 private:
  static const Product<T>& product() { return product_of<T>(); }
  FlushSubnormals flush_subnormals_;
};

}  // namespace fastlstm
