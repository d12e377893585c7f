// Working memory for one call of an engine. The next call gets it again: new memory from
// the system costs a page fault every 4 KB, more than half of a short walk with large weights.
#pragma once
#include <ATen/core/Tensor.h>

namespace fastlstm {

// Bytes of any content, aligned to a cache line, until it is destroyed.
class Scratch {
 public:
  Scratch() = default;
  explicit Scratch(int64_t bytes);

  int64_t nbytes() const { return nbytes_; }
  template <typename T>
  T* data() const {
    return static_cast<T*>(data_);
  }

 private:
  int64_t nbytes_ = 0;
  void* data_ = nullptr;
  c10::DataPtr small_;  // which malloc keeps, in less time than a tensor
  at::Tensor large_;    // one of those that are kept, of 64 MB at most
};

template <typename T>
Scratch scratch(int64_t count) {
  return Scratch(count * static_cast<int64_t>(sizeof(T)));
}

// Gives back what is kept and not in use; returns how many bytes.
int64_t release_scratch();

}  // namespace fastlstm
