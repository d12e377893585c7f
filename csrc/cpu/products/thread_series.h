// What a thread does before its first and after its last product of a series.
#pragma once
#include "cpu/targets/kernels.h"

namespace fastlstm {

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
};

}  // namespace fastlstm
