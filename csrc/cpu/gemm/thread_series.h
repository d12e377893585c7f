// What a thread does after its last product of a series.
#pragma once
#include "cpu/targets/kernels.h"

namespace fastlstm {

// A library may keep a context in a thread. Nothing within a thread of a series may throw.
template <typename T>
class ThreadSeries {
 public:
  ThreadSeries() = default;
  ~ThreadSeries() {
    if (product_of<T>().end_thread) product_of<T>().end_thread();
  }
  ThreadSeries(const ThreadSeries&) = delete;
  ThreadSeries& operator=(const ThreadSeries&) = delete;
};

}  // namespace fastlstm
