#include "scratch.h"

#include <ATen/EmptyTensor.h>
#include <c10/core/CPUAllocator.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <algorithm>
#include <atomic>
#include <mutex>
#include <vector>

namespace fastlstm {
namespace {

constexpr int64_t kKeptBytes = 64 << 20;
constexpr int64_t kSmallBytes = 128 << 10;  // malloc keeps smaller blocks by itself

// A mutex that can only try to lock. A blocking lock could wait forever after a fork, because the
// thread that holds the mutex does not exist in the child. It is not a std::mutex, because a
// library with std::mutex that is built on a system with glibc 2.34 also needs glibc 2.34 to run.
struct Mutex {
  std::atomic_flag taken = ATOMIC_FLAG_INIT;
  bool try_lock() { return !taken.test_and_set(std::memory_order_acquire); }
  void unlock() { taken.clear(std::memory_order_release); }
};

struct BlockCache {
  Mutex mutex;
  std::vector<at::Tensor> blocks;  // in the order of their last use
  int64_t bytes = 0;
};

BlockCache& kept() {
  static auto* const forever =
      new BlockCache;  // never freed: threads may run until the process ends
  return *forever;
}

bool is_free(const at::Tensor& block) { return block.use_count() == 1; }

// Frees blocks that are not in use, the least recently used first, until at most `bytes` are kept.
void shrink(BlockCache& kept, int64_t bytes) {
  auto& blocks = kept.blocks;
  while (kept.bytes > bytes) {
    const auto block = std::find_if(blocks.begin(), blocks.end(), is_free);
    if (block == blocks.end()) return;
    kept.bytes -= block->nbytes();
    blocks.erase(block);
  }
}

at::Tensor fresh(int64_t bytes) {
  return at::Tensor(at::detail::empty_cpu({bytes}, at::TensorOptions(at::kByte)));
}

// A kept block of this size or slightly more, or a new block.
at::Tensor block_of(int64_t bytes) {
  if (bytes > kKeptBytes) return fresh(bytes);
  BlockCache& kept = fastlstm::kept();
  const std::unique_lock<Mutex> lock(kept.mutex, std::try_to_lock);
  if (!lock) return fresh(bytes);
  auto& blocks = kept.blocks;
  const auto fits = [bytes](const at::Tensor& block) {
    const auto size = static_cast<int64_t>(block.nbytes());
    return is_free(block) && bytes <= size && size <= bytes + bytes / 8;
  };
  const auto kept_one = std::find_if(blocks.begin(), blocks.end(), fits);
  if (kept_one != blocks.end()) {
    std::atomic_thread_fence(std::memory_order_acquire);  // after its last user released it
    std::rotate(kept_one, kept_one + 1, blocks.end());
    return blocks.back();
  }
  at::Tensor block = fresh(bytes);
  shrink(kept, kKeptBytes - bytes);
  if (kept.bytes + bytes > kKeptBytes) return block;
  kept.bytes += bytes;
  blocks.push_back(block);
  return block;
}

}  // namespace

Scratch::Scratch(int64_t bytes) : nbytes_(bytes) {
  if (bytes == 0) return;
  if (bytes < kSmallBytes) {
    small_ = c10::GetCPUAllocator()->allocate(bytes);
    data_ = small_.get();
  } else {
    large_ = block_of(bytes);
    data_ = large_.mutable_data_ptr();
  }
}

at::Tensor empty_on_huge_pages(at::IntArrayRef sizes, const at::TensorOptions& options) {
  at::Tensor tensor(at::detail::empty_cpu(sizes, options));
#if defined(__linux__)
  constexpr uintptr_t kPage = 2 << 20, kMapped = 32 << 20;
  const auto begin = reinterpret_cast<uintptr_t>(tensor.mutable_data_ptr());
  const uintptr_t first = (begin + kPage - 1) / kPage * kPage;
  if (tensor.nbytes() >= kMapped)
    madvise(reinterpret_cast<void*>(first), begin + tensor.nbytes() - first, MADV_HUGEPAGE);
#endif
  return tensor;
}

int64_t release_scratch() {
  BlockCache& kept = fastlstm::kept();
  const std::unique_lock<Mutex> lock(kept.mutex, std::try_to_lock);
  if (!lock) return 0;
  const int64_t before = kept.bytes;
  shrink(kept, 0);
  return before - kept.bytes;
}

}  // namespace fastlstm
