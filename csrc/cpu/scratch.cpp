#include "scratch.h"

#include <ATen/EmptyTensor.h>
#include <c10/core/CPUAllocator.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <algorithm>
#include <atomic>
#include <functional>
#include <mutex>
#include <numeric>
#include <vector>

#include "parts.h"

namespace fastlstm {
namespace {

constexpr int64_t kCacheBytes = 64 << 20;   // the most bytes that are kept
constexpr int64_t kSmallBytes = 128 << 10;  // malloc serves blocks below this size

// The blocks of working memory, both in use and free, and a lock that threads can only try to take.
// After a fork a blocking lock could wait forever for a thread that does not exist in the child. It
// is not a std::mutex: try_lock built with glibc 2.34 or newer does not run with an older glibc.
struct BlockCache {
  std::vector<at::Tensor> blocks;  // the smallest first
  std::atomic_flag is_locked = ATOMIC_FLAG_INIT;
  bool try_lock() { return !is_locked.test_and_set(std::memory_order_acquire); }
  void unlock() { is_locked.clear(std::memory_order_release); }
};
using Lock = std::unique_lock<BlockCache>;

BlockCache& block_cache() {
  static auto* const cache = new BlockCache;  // never freed: threads may outlive static objects
  return *cache;
}

// Whether no call uses the block: the cache has the only reference.
bool is_free(const at::Tensor& block) { return block.use_count() == 1; }

int64_t bytes_of(const std::vector<at::Tensor>& blocks) {
  return std::transform_reduce(blocks.begin(), blocks.end(), int64_t(0), std::plus(),
                               [](const at::Tensor& block) { return block.nbytes(); });
}

at::Tensor new_block(int64_t bytes) {
  return at::Tensor(at::detail::empty_cpu({bytes}, at::TensorOptions(at::kByte)));
}

// Returns the smallest kept block that is large enough. If there is none, a new block replaces the
// largest, so that calls of many sizes do not keep a block for each size.
at::Tensor block_of(int64_t bytes) {
  if (bytes > kCacheBytes) return new_block(bytes);
  BlockCache& cache = block_cache();
  const Lock lock(cache, std::try_to_lock);
  if (!lock) return new_block(bytes);
  auto& blocks = cache.blocks;
  const auto first = std::ranges::lower_bound(blocks, bytes, {}, &at::Tensor::nbytes);
  const auto fitting = std::find_if(first, blocks.end(), is_free);
  if (fitting != blocks.end()) {
    std::atomic_thread_fence(std::memory_order_acquire);  // pairs with its last user's release
    return *fitting;
  }
  const auto largest = std::find_if(blocks.rbegin(), blocks.rend(), is_free);
  if (largest != blocks.rend()) blocks.erase(std::prev(largest.base()));
  at::Tensor block = new_block(bytes);
  while (bytes_of(blocks) > kCacheBytes - bytes) {
    const auto smallest = std::ranges::find_if(blocks, is_free);
    if (smallest == blocks.end()) return block;
    blocks.erase(smallest);
  }
  blocks.insert(std::ranges::lower_bound(blocks, bytes, {}, &at::Tensor::nbytes), block);
  return block;
}

}  // namespace

Scratch::Scratch(int64_t bytes) : nbytes_(bytes) {
  if (bytes == 0) return;
  if (bytes < kSmallBytes)
    small_ = c10::GetCPUAllocator()->allocate(bytes);
  else
    large_ = block_of(bytes);
  data_ = small_ ? small_.get() : large_.mutable_data_ptr();
}

at::Tensor empty_on_huge_pages(at::IntArrayRef sizes, const at::TensorOptions& options) {
  at::Tensor tensor(at::detail::empty_cpu(sizes, options));
#if defined(__linux__)
  constexpr int64_t kHugePage = 2 << 20, kMinBytes = 32 << 20;
  const auto begin = reinterpret_cast<int64_t>(tensor.mutable_data_ptr());
  const int64_t first = round_up(begin, kHugePage), bytes = tensor.nbytes();
  if (bytes >= kMinBytes)
    madvise(reinterpret_cast<void*>(first), begin + bytes - first, MADV_HUGEPAGE);
#endif
  return tensor;
}

int64_t release_scratch() {
  BlockCache& cache = block_cache();
  const Lock lock(cache, std::try_to_lock);
  if (!lock) return 0;
  const auto in_use = std::ranges::stable_partition(cache.blocks, is_free).begin();
  const std::vector<at::Tensor> freed(cache.blocks.begin(), in_use);
  cache.blocks.erase(cache.blocks.begin(), in_use);
  return bytes_of(freed);
}

}  // namespace fastlstm
