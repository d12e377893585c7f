// Working memory of a call, which is kept for the next call. The page faults of new memory would
// take more than half of the time of a short walk with large weights.
#pragma once
#include <ATen/core/Tensor.h>

namespace fastlstm {

// Owns uninitialized memory that is aligned to a cache line.
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
  c10::DataPtr small_;  // owns a small block, which malloc keeps for the next call
  at::Tensor large_;    // owns a large block, which scratch.cpp may keep for the next call
};

template <typename T>
Scratch scratch(int64_t count) {
  return Scratch(count * static_cast<int64_t>(sizeof(T)));
}

// Returns a tensor with uninitialized values, on huge pages if it has 32 MB or more: malloc maps
// such a block anew each time, and page faults of 4 KB each would take longer than writing it.
at::Tensor empty_on_huge_pages(at::IntArrayRef sizes, const at::TensorOptions& options);

// Frees the blocks that are kept and not in use. Returns the number of freed bytes.
int64_t release_scratch();

}  // namespace fastlstm
