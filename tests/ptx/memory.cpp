#include "memory.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <new>

namespace ptx {
namespace {

// An allocator for the table of allocations, because operator new, replaced below, uses the table.
template <typename T>
struct MallocAllocator {
  using value_type = T;
  MallocAllocator() = default;
  template <typename U>
  MallocAllocator(const MallocAllocator<U>&) {}
  T* allocate(size_t n) { return static_cast<T*>(std::malloc(n * sizeof(T))); }
  void deallocate(T* p, size_t) { std::free(p); }
  bool operator==(const MallocAllocator&) const = default;
};

constexpr size_t kAlignment = 256;  // the same as cudaMalloc's

// All recorded allocations, by their end; `pauses` is the number of RecordingPause objects.
struct Table {
  std::mutex mutex;
  std::map<uintptr_t, Allocation, std::less<uintptr_t>,
           MallocAllocator<std::pair<const uintptr_t, Allocation>>>
      by_end;
  int pauses = 0;
};
Table& table() {
  alignas(Table) static unsigned char memory[sizeof(Table)];  // never destroyed
  static Table* const t = new (memory) Table;
  return *t;
}

void* allocate(size_t bytes, size_t align) {
  Table& t = table();
  const std::lock_guard<std::mutex> lock(t.mutex);
  if (t.pauses == 0) align = std::max(align, kAlignment);
  void* const p = align <= alignof(std::max_align_t)
                      ? std::malloc(bytes ? bytes : 1)
                      : std::aligned_alloc(align, (bytes + align) / align * align);
  if (!p) throw std::bad_alloc();
  if (t.pauses > 0) return p;
  std::memset(p, kJunk, bytes);
  const auto begin = reinterpret_cast<uintptr_t>(p);
  t.by_end[begin + bytes] = {begin, begin + bytes, nullptr};
  return p;
}

void release(void* p) {
  if (!p) return;
  {
    Table& t = table();
    const std::lock_guard<std::mutex> lock(t.mutex);
    const auto found = t.by_end.upper_bound(reinterpret_cast<uintptr_t>(p));
    if (found != t.by_end.end() && found->second.begin == reinterpret_cast<uintptr_t>(p)) {
      std::free(found->second.shadow);
      t.by_end.erase(found);
    }
  }
  std::free(p);
}

// Returns `race` if the two accesses are a data race, another message if they are relaxed accesses
// of different sizes, or null if there is no race.
const char* race_between(const AccessRecord& before, const AccessRecord& now, const char* race) {
  if (!unordered(before, now)) return nullptr;
  if (!before.relaxed || !now.relaxed) return race;
  return before.bytes == now.bytes ? nullptr : "relaxed accesses of different sizes";
}

}  // namespace

const Allocation* find_allocation(uintptr_t address, bool with_shadow) {
  Table& t = table();
  const std::lock_guard<std::mutex> lock(t.mutex);
  const auto found = t.by_end.upper_bound(address);
  if (found == t.by_end.end() || found->second.begin > address) return nullptr;
  Allocation& a = found->second;
  if (with_shadow && !a.shadow)
    a.shadow = static_cast<Shadow*>(
        std::calloc((a.end - a.begin + kGranule - 1) / kGranule + 1, sizeof(Shadow)));
  return &a;
}

RecordingPause::RecordingPause() { ++table().pauses; }
RecordingPause::~RecordingPause() { --table().pauses; }

const char* record_access(Shadow& shadow, const AccessRecord& now, bool is_store) {
  const char* race = race_between(shadow.store, now, "another thread's store");
  if (is_store) {
    for (const AccessRecord& load : {shadow.load, shadow.other_load})
      if (!race) race = race_between(load, now, "another thread's load");
    shadow.store = now;
  } else {
    if (unordered(shadow.load, now)) shadow.other_load = shadow.load;
    shadow.load = now;
  }
  return race;
}

}  // namespace ptx

// The library's array forms of these functions call them.
void* operator new(size_t bytes) { return ptx::allocate(bytes, 1); }
void* operator new(size_t bytes, std::align_val_t align) {
  return ptx::allocate(bytes, static_cast<size_t>(align));
}
void operator delete(void* p) noexcept { ptx::release(p); }
void operator delete(void* p, size_t) noexcept { ptx::release(p); }
void operator delete(void* p, std::align_val_t) noexcept { ptx::release(p); }
void operator delete(void* p, size_t, std::align_val_t) noexcept { ptx::release(p); }
