// An emulator of a GPU on one host thread, which runs the project's .cu files without a GPU.
//
// Every CUDA thread is a fiber. A fiber runs until it reaches a barrier or waits for a value. A
// seeded random generator then chooses the next fiber, and half of the warps are far slower than
// the others. So a kernel that relies on some order of the threads fails under some seeds, and does
// not work by luck. The emulator detects:
//   - a deadlock: a barrier that some threads never reach, or a value that no thread stores;
//   - a read of shared memory that was not written (it is initialized to NaN), and an access beyond
//     its end (by ASan);
//   - a value exchanged between blocks that is stored twice, or that has the bits of an unwritten
//     value (exchange_store).
// It has only the CUDA features that the kernels use. The masks of warp functions must be full.
#pragma once
#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <exception>
#include <functional>
#include <iterator>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

using cudaStream_t = void*;
enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidDeviceFunction = 98,
  cudaErrorNoKernelImageForDevice = 209,
  cudaErrorCooperativeLaunchTooLarge = 720
};

namespace simt {

// An error of the kernel under test.
struct Fault : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Fiber;

struct Barrier {
  unsigned expected = 0;
  std::vector<Fiber*> waiting;
};

struct Warp {
  Barrier barrier;
  bool slow = false;
  uint32_t mail[2][32][8];      // words that lanes exchange: [buffer][lane][word], see `post`
  unsigned exchanges[32] = {};  // for each lane, the number of exchanges so far
};

struct Block {
  dim3 index;
  std::unique_ptr<unsigned char[]> shared;  // its own allocation, so that ASan checks its end
  size_t shared_bytes = 0;
  Barrier barrier;
  std::vector<Warp> warps;
};

constexpr size_t kStackBytes = 128 * 1024;

struct Fiber {
  ucontext_t context;
  jmp_buf resume;
  bool started = false;
  void* fake_stack = nullptr;  // for ASan
  char* stack = nullptr;
  Block* block = nullptr;
  Warp* warp = nullptr;
  dim3 index;
  unsigned lane = 0;
};

// The state of one launch.
struct Machine {
  dim3 grid_size, block_size;
  std::vector<Block> blocks;
  std::vector<Fiber> fibers;
  std::vector<Fiber*> ready;
  std::vector<Fiber*> late;  // fibers of a block that has not started yet, see `late_polls`
  // The fibers that wait for a store, by its address.
  std::unordered_map<const void*, std::vector<Fiber*>> awaiting;
  const std::function<void()>* body = nullptr;
  Fiber* current = nullptr;
  size_t unfinished = 0;
  std::exception_ptr fault;
  std::minstd_rand random;
  ucontext_t scheduler;
  jmp_buf scheduler_resume;
  const void* scheduler_stack = nullptr;
  size_t scheduler_stack_bytes = 0;
};

inline Machine*& machine() {
  static Machine* m = nullptr;
  return m;
}
inline Fiber& self() { return *machine()->current; }

// The seed of the order in which fibers run.
inline unsigned& seed() {
  static unsigned s = 1;
  return s;
}
// How many blocks fit on the device at the same time.
inline unsigned& resident_blocks() {
  static unsigned n = 1024;
  return n;
}
// How many calls of await_store, by all threads together, come before the last block of a
// cooperative launch starts. Each of them subtracts 1.
inline int& late_polls() {
  static int n = 0;
  return n;
}
// The error of a cooperative launch of more than `resident_blocks` blocks.
inline cudaError_t& refusal() {
  static cudaError_t error = cudaErrorCooperativeLaunchTooLarge;
  return error;
}

// --- switching between fibers ---
// The first entry of a fiber needs ucontext. Later switches use setjmp and longjmp, which need no
// system call. With ASan all switches use swapcontext, because ASan does not support longjmp
// between stacks.

#if defined(__SANITIZE_ADDRESS__)
inline void enter(Machine& m, Fiber& f) {
  void* fake = nullptr;
  __sanitizer_start_switch_fiber(&fake, f.stack, kStackBytes);
  swapcontext(&m.scheduler, &f.context);
  __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
}
inline void leave(Machine& m, Fiber& f, bool for_good = false) {
  __sanitizer_start_switch_fiber(for_good ? nullptr : &f.fake_stack, m.scheduler_stack,
                                 m.scheduler_stack_bytes);
  swapcontext(&f.context, &m.scheduler);
  __sanitizer_finish_switch_fiber(f.fake_stack, nullptr, nullptr);
}
#else
__attribute__((noinline)) inline void enter(Machine& m, Fiber& f) {
  if (_setjmp(m.scheduler_resume)) return;
  if (f.started) _longjmp(f.resume, 1);
  f.started = true;
  setcontext(&f.context);
}
__attribute__((noinline)) inline void leave(Machine& m, Fiber& f, bool = false) {
  if (!_setjmp(f.resume)) _longjmp(m.scheduler_resume, 1);
}
#endif

inline void suspend() { leave(*machine(), self()); }

inline Fiber* take_ready(Machine& m) {
  size_t pick = m.random() % m.ready.size();
  for (int tries = 0; tries < 8 && m.ready[pick]->warp->slow; ++tries)
    pick = m.random() % m.ready.size();
  std::swap(m.ready[pick], m.ready.back());
  Fiber* const f = m.ready.back();
  m.ready.pop_back();
  return f;
}

inline void fiber_main() {
  Machine& m = *machine();
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &m.scheduler_stack, &m.scheduler_stack_bytes);
#endif
  try {
    (*m.body)();
  } catch (...) {
    m.fault = std::current_exception();
  }
  --m.unfinished;
  leave(m, *m.current, true);
}

// Waits until all threads have arrived at the barrier.
inline void arrive(Barrier& barrier) {
  Machine& m = *machine();
  barrier.waiting.push_back(m.current);
  if (barrier.waiting.size() == barrier.expected) {
    m.ready.insert(m.ready.end(), barrier.waiting.begin(), barrier.waiting.end());
    barrier.waiting.clear();
  }
  suspend();
}

// --- data exchanged between blocks ---

// Sometimes lets another fiber run first, so that a store may come late.
inline void hesitate() {
  Machine& m = *machine();
  if (m.random() % 8 != 0) return;
  m.ready.push_back(m.current);
  suspend();
}

// All bits set mean that a word was not stored yet. Each word is stored exactly once.
constexpr uint32_t kUnwritten = 0xffffffff;

inline void exchange_store(uint32_t* address, uint32_t word) {
  hesitate();
  if (*address != kUnwritten) throw Fault("a value is stored twice");
  if (word == kUnwritten) throw Fault("a value is stored that has the bits of an unwritten value");
  *address = word;
  Machine& m = *machine();
  const auto found = m.awaiting.find(address);
  if (found == m.awaiting.end()) return;
  m.ready.insert(m.ready.end(), found->second.begin(), found->second.end());
  m.awaiting.erase(found);
}

// The clock of the device. Each read sets it forward by a millisecond.
inline uint32_t milliseconds() {
  static uint32_t now = 0;
  return ++now;
}

// Waits until the first unwritten word of `count` words at `address` is stored.
inline void await_store(const uint32_t* address, int count) {
  if (late_polls() > 0) {
    --late_polls();
    machine()->ready.push_back(machine()->current);
    return suspend();
  }
  for (int i = 0; i < count; ++i) {
    if (address[i] != kUnwritten) continue;
    machine()->awaiting[address + i].push_back(machine()->current);
    return suspend();
  }
}

// --- warp functions ---

// Gives `count` words to the other lanes of the warp, and returns the words of all lanes: [32][8].
// There are two buffers, because a lane can be one exchange ahead of the slowest lane, but not two.
inline const uint32_t (*post(const uint32_t* words, int count))[8] {
  Fiber& f = self();
  auto& mail = f.warp->mail[f.warp->exchanges[f.lane]++ % 2];
  std::memcpy(mail[f.lane], words, 4 * count);
  arrive(f.warp->barrier);
  return mail;
}

template <typename T>
T shuffle_xor(T value, int mask) {
  uint32_t words[sizeof(T) / 4];
  std::memcpy(words, &value, sizeof value);
  const unsigned lane = self().lane;
  std::memcpy(&value, post(words, sizeof(T) / 4)[lane ^ mask], sizeof value);
  return value;
}

inline uint32_t shuffle(uint32_t word, int lane) { return post(&word, 1)[lane][0]; }

// An ordinary launch runs its blocks one after the other; a cooperative launch runs all together.
enum Residency { kBlocksInTurn, kAllBlocks };

// The stack of a fiber, which the next launch uses again.
inline char* stack_of(size_t fiber) {
  static std::vector<std::unique_ptr<char[]>> stacks;
  while (stacks.size() <= fiber) stacks.emplace_back(new char[kStackBytes]);
  return stacks[fiber].get();
}

inline dim3 unravel(unsigned i, const dim3& size) {
  return dim3(i % size.x, i / size.x % size.y, i / (size.x * size.y));
}

inline void prepare(Fiber& f, char* stack) {
  f.stack = stack;
  getcontext(&f.context);
  f.context.uc_stack.ss_sp = stack, f.context.uc_stack.ss_size = kStackBytes;
  f.context.uc_link = nullptr;
  makecontext(&f.context, fiber_main, 0);
}

// Runs the blocks first .. first + count - 1 together, to their end.
inline void run_blocks(Machine& m, unsigned first, unsigned count, size_t shared_bytes) {
  const unsigned threads = m.block_size.x * m.block_size.y * m.block_size.z;
  m.blocks = std::vector<Block>(count);
  m.fibers = std::vector<Fiber>(size_t(count) * threads);
  m.unfinished = m.fibers.size();
  m.ready.clear(), m.awaiting.clear();
  for (unsigned b = 0; b < count; ++b) {
    Block& block = m.blocks[b];
    block.index = unravel(first + b, m.grid_size);
    block.shared.reset(new unsigned char[shared_bytes]), block.shared_bytes = shared_bytes;
    std::memset(block.shared.get(), 0xff, shared_bytes);
    block.barrier.expected = threads;
    block.warps = std::vector<Warp>((threads + 31) / 32);
    for (Warp& warp : block.warps) warp.slow = m.random() % 2;
    for (unsigned i = 0; i < threads; ++i) {
      Fiber& f = m.fibers[size_t(b) * threads + i];
      f.block = &block, f.warp = &block.warps[i / 32];
      f.warp->barrier.expected++;
      f.index = unravel(i, m.block_size), f.lane = i % 32;
      prepare(f, stack_of(size_t(b) * threads + i));
      const bool is_late = late_polls() > 0 && count > 1 && b == count - 1;
      (is_late ? m.late : m.ready).push_back(&f);
    }
  }
  while (m.unfinished > 0) {
    if (late_polls() == 0 || m.ready.empty())
      std::move(m.late.begin(), m.late.end(), std::back_inserter(m.ready)), m.late.clear();
    if (m.ready.empty())
      throw Fault("deadlock: " + std::to_string(m.unfinished) +
                  " threads wait at a barrier that not all threads reach, or for a value that no "
                  "thread stores");
    m.current = take_ready(m);
    enter(m, *m.current);
    if (m.fault) std::rethrow_exception(m.fault);
  }
}

inline cudaError_t launch(dim3 grid, dim3 block, size_t shared_bytes, Residency residency,
                          const std::function<void()>& body) {
  const unsigned threads = block.x * block.y * block.z, blocks = grid.x * grid.y * grid.z;
  if (threads == 0 || threads > 1024 || blocks == 0 || grid.y > 65535 || grid.z > 65535)
    return cudaErrorInvalidValue;
  if (residency == kAllBlocks && blocks > resident_blocks()) return refusal();
  Machine m;
  struct Current {
    explicit Current(Machine* m) { machine() = m; }
    ~Current() { machine() = nullptr; }
  } current(&m);
  m.grid_size = grid, m.block_size = block, m.body = &body;
  m.random.seed(seed());
  const unsigned at_once = residency == kAllBlocks ? blocks : 1;
  for (unsigned b = 0; b < blocks; b += at_once) run_blocks(m, b, at_once, shared_bytes);
  return cudaSuccess;
}

}  // namespace simt

#define threadIdx (simt::self().index)
#define blockIdx (simt::self().block->index)
#define blockDim (simt::machine()->block_size)
#define gridDim (simt::machine()->grid_size)
inline void __syncthreads() { simt::arrive(simt::self().block->barrier); }
inline void __syncwarp() { simt::arrive(simt::self().warp->barrier); }
