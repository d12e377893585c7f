// Records the memory of the program under test, and finds data races. Global memory is host memory,
// so every allocation of the process is recorded, and an access must be inside an allocation. A
// data race is two accesses to the same memory by different threads, at least one of them a store,
// without a barrier between them; two relaxed accesses of the same size are no race. To find races,
// shadow memory stores the last accesses to each piece of memory.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace ptx {

// An access to a piece of memory, with the number of barriers that its thread had passed.
struct AccessRecord {
  uint32_t launch = 0;
  uint32_t block = 0, thread = 0;  // the index of the block in the grid, of the thread in the block
  uint32_t block_epoch = 0, warp_epoch = 0;
  uint8_t bytes = 0;
  bool relaxed = false;
};

// The last accesses to a piece of memory: the last store, and the last loads by two threads.
struct Shadow {
  AccessRecord store, load, other_load;
};

// Whether two accesses are by different threads, without a barrier between them.
inline bool unordered(const AccessRecord& before, const AccessRecord& now) {
  if (before.launch != now.launch) return false;
  if (before.block != now.block) return true;
  if (before.thread == now.thread || before.block_epoch != now.block_epoch) return false;
  return before.thread / 32 != now.thread / 32 || before.warp_epoch == now.warp_epoch;
}

// Records an access in its shadow. Returns the access that it races with, as text, or null.
const char* record_access(Shadow& shadow, const AccessRecord& now, bool is_store);

// --- allocations of the host ---

// Each byte of new memory has this value, which no test stores.
constexpr uint8_t kJunk = 0xfb;
constexpr int kGranule = 2;  // the number of bytes of global memory that share a shadow

struct Allocation {
  uintptr_t begin = 0, end = 0;
  Shadow* shadow = nullptr;  // one for each granule, or null if there is no shadow memory yet
};

// Returns the allocation that contains an address, or null; `with_shadow` gives it shadow memory.
const Allocation* find_allocation(uintptr_t address, bool with_shadow);

// While an object of this class exists, allocations (the interpreter's own) are not recorded.
class RecordingPause {
 public:
  RecordingPause();
  ~RecordingPause();
  RecordingPause(const RecordingPause&) = delete;
  RecordingPause& operator=(const RecordingPause&) = delete;
};

}  // namespace ptx
