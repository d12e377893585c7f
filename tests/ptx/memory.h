// Memory of the program under test. Global memory is memory of the host, so every allocation of the
// process is recorded, and an access must lie in one. Shadow values say who accessed what last, to
// find data races: two accesses, one of them a store, by different threads without a barrier
// between them. Of two relaxed accesses of one size that is none.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace ptx {

// Who accessed a piece of memory, and how far the barriers were then.
struct Visit {
  uint32_t launch = 0;
  uint32_t block = 0, thread = 0;  // of the grid; of the block
  uint32_t block_epoch = 0, warp_epoch = 0;
  uint8_t bytes = 0;
  bool strong = false;
};

struct Shadow {
  Visit store, load, other_load;  // the last ones; other_load: of another thread than load
};

// Whether nothing orders `before` and `now`, which one thread or two make.
inline bool unordered(const Visit& before, const Visit& now) {
  if (before.launch != now.launch) return false;
  if (before.block != now.block) return true;
  if (before.thread == now.thread || before.block_epoch != now.block_epoch) return false;
  return before.thread / 32 != now.thread / 32 || before.warp_epoch == now.warp_epoch;
}

// Notes an access; with what it races, or null.
const char* visit(Shadow& shadow, const Visit& now, bool is_store);

// --- allocations of the host ---

// Each byte of fresh memory: no value that a test would use.
constexpr uint8_t kJunk = 0xfb;
constexpr int kGranule = 2;  // bytes of global memory that share a shadow

struct Allocation {
  uintptr_t begin = 0, end = 0;
  Shadow* shadow = nullptr;  // one per granule, or null: not tracked
};

// The allocation with this address, or null. Shadow memory is made when asked for.
const Allocation* find_allocation(uintptr_t address, bool with_shadow);

// While one lives, new allocations are the interpreter's own and not recorded.
class OwnMemory {
 public:
  OwnMemory();
  ~OwnMemory();
  OwnMemory(const OwnMemory&) = delete;
  OwnMemory& operator=(const OwnMemory&) = delete;
};

}  // namespace ptx
