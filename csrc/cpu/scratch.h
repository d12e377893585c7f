// Working memory for one call of an engine. The next call gets it again: new memory from
// the system costs a page fault every 4 KB, more than half of a short walk with large weights.
#pragma once
#include <ATen/core/Tensor.h>

namespace fastlstm {

// `bytes` bytes of any content, aligned to a cache line. At most 64 MB are kept.
at::Tensor scratch_bytes(int64_t bytes);

template <typename T>
at::Tensor scratch(int64_t count) {
  return scratch_bytes(count * static_cast<int64_t>(sizeof(T)));
}

// Gives back what is kept and not in use; returns how many bytes.
int64_t release_scratch();

}  // namespace fastlstm
