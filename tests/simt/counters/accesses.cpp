// What code that was compiled with -fsanitize=thread calls before each access to memory: here it
// counts those of a kernel that runs.
#include "counters.h"

namespace {

void access(const void* address, size_t bytes, counters::Kind kind, const void* place) {
  counters::Counters* const counters = counters::Counters::current();
  if (!counters || !simt::machine() || !simt::machine()->current) return;
  if (bytes == 1 && kind == counters::kLoad) kind = counters::kPrefetch;  // device.h's
  // A large one is instructions of 16 bytes, each at a place of its own.
  for (size_t done = 0; done < bytes; done += 16)
    counters->access(static_cast<const char*>(address) + done,
                     static_cast<int>(std::min<size_t>(bytes - done, 16)), kind,
                     static_cast<const char*>(place) + done / 16);
}

}  // namespace

#define PLACE __builtin_return_address(0)
#define ACCESS(bytes)                                                                        \
  void __tsan_read##bytes(void* at) { access(at, bytes, counters::kLoad, PLACE); }           \
  void __tsan_write##bytes(void* at) { access(at, bytes, counters::kStore, PLACE); }         \
  void __tsan_unaligned_read##bytes(void* at) { access(at, bytes, counters::kLoad, PLACE); } \
  void __tsan_unaligned_write##bytes(void* at) { access(at, bytes, counters::kStore, PLACE); }

extern "C" {
ACCESS(1)
ACCESS(2)
ACCESS(4)
ACCESS(8)
ACCESS(16)
void __tsan_read_range(void* at, size_t bytes) { access(at, bytes, counters::kLoad, PLACE); }
void __tsan_write_range(void* at, size_t bytes) { access(at, bytes, counters::kStore, PLACE); }
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
// Of the guard of a static local, in the only thread.
unsigned char __tsan_atomic8_load(const volatile unsigned char* at, int) { return *at; }
}
