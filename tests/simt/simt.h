// A GPU on one host thread, for running the project's .cu files without one.
//
// Every CUDA thread is a fiber. A fiber runs until it meets a barrier or waits for a value; which
// one runs next is drawn from a seeded generator, and half of the warps are far slower than the
// others, so an order that the kernel takes for granted fails under some seed instead of working by
// luck. What is checked on the way:
//   - a barrier that some of its threads never reach, or a value that nobody stores (deadlock);
//   - shared memory read before it was written (it starts as NaN) or beyond its end (ASan);
//   - a value exchanged between blocks that is stored twice, or looks like none (exchange_store).
// Only what the kernels use is here; masks of warp functions are taken to be full.
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
  cudaErrorInvalidConfiguration = 9,
  cudaErrorInvalidDeviceFunction = 98,
  cudaErrorNoKernelImageForDevice = 209,
  cudaErrorLaunchOutOfResources = 701,
  cudaErrorCooperativeLaunchTooLarge = 720,
  cudaErrorNotPermitted = 800,
  cudaErrorNotSupported = 801
};

#define FASTLSTM_SPIN_LIMIT 1000  // polls; a thread here polls again only when something was stored

namespace simt {

template <typename To, typename From>
To bits_of(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

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
  uint32_t mail[2][32][8];  // what lanes hand each other, in two buffers that take turns
  unsigned turn[32] = {};
};

struct Block {
  dim3 index;
  std::unique_ptr<unsigned char[]> shared;  // exactly as long as asked for, so ASan sees its end
  size_t shared_bytes = 0;
  Barrier barrier;
  std::vector<Warp> warps;
};

constexpr size_t kStackBytes = 128 * 1024;

struct Fiber {
  ucontext_t context;
  jmp_buf resume;
  bool started = false;
  void* fake_stack = nullptr;  // ASan's
  char* stack = nullptr;
  Block* block = nullptr;
  Warp* warp = nullptr;
  dim3 index;
  unsigned lane = 0;
};

struct Machine {
  dim3 grid_size, block_size;
  std::vector<Block> blocks;
  std::vector<Fiber> fibers;
  std::vector<Fiber*> ready;
  std::vector<Fiber*> late;  // of a block that has no multiprocessor yet
  std::unordered_map<const void*, std::vector<Fiber*>> awaiting;  // by address
  const std::function<void()>* body = nullptr;
  Fiber* current = nullptr;
  size_t running = 0;
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

// Seed of the order in which fibers run; how many blocks fit on the device at once, and how a
// cooperative launch of more is refused.
inline unsigned& seed() {
  static unsigned s = 1;
  return s;
}
inline unsigned& resident_blocks() {
  static unsigned n = 1024;
  return n;
}
// How often threads poll in vain before the last block of a cooperative launch starts.
inline int& late_polls() {
  static int n = 0;
  return n;
}
inline cudaError_t& refusal() {
  static cudaError_t error = cudaErrorCooperativeLaunchTooLarge;
  return error;
}

// --- switching ---
// The first entry of a fiber needs ucontext; after that setjmp and longjmp do, without a system
// call per switch. ASan follows only swapcontext.

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

// --- who runs next ---

inline void make_ready(Machine& m, Fiber* f) { m.ready.push_back(f); }

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
  --m.running;
  leave(m, *m.current, true);
}

// --- barriers ---

inline void arrive(Barrier& barrier) {
  Machine& m = *machine();
  barrier.waiting.push_back(m.current);
  if (barrier.waiting.size() == barrier.expected) {
    for (Fiber* f : barrier.waiting) make_ready(m, f);
    barrier.waiting.clear();
  }
  suspend();
}

// --- data exchanged between blocks ---

// Now and then another fiber goes first, so that a neighbor's write may come late.
inline void hesitate() {
  Machine& m = *machine();
  if (m.random() % 8 != 0) return;
  make_ready(m, m.current);
  suspend();
}

// No word has all bits set: that means that there is none yet. Each is stored once, over that.
constexpr uint32_t kUnwritten = 0xffffffff;

inline void exchange_store(uint32_t* address, uint32_t word) {
  hesitate();
  if (*address != kUnwritten) throw Fault("a value is stored where one stands already");
  if (word == kUnwritten) throw Fault("a value is stored that looks like none");
  *address = word;
  Machine& m = *machine();
  const auto found = m.awaiting.find(address);
  if (found == m.awaiting.end()) return;
  for (Fiber* f : found->second) make_ready(m, f);
  m.awaiting.erase(found);
}

// Until the first of `count` words that is missing has been stored.
inline void await_store(const uint32_t* address, int count) {
  if (late_polls() > 0) {
    --late_polls();
    make_ready(*machine(), machine()->current);
    return suspend();
  }
  for (int i = 0; i < count; ++i) {
    if (address[i] != kUnwritten) continue;
    machine()->awaiting[address + i].push_back(machine()->current);
    return suspend();
  }
}

// --- warp functions ---

// Hands `count` words to the other lanes and returns everybody's. Two buffers take turns: a lane
// can be one exchange ahead of the slowest, never two.
inline const uint32_t (*post(const uint32_t* words, int count))[8] {
  Fiber& f = self();
  auto& mail = f.warp->mail[f.warp->turn[f.lane]++ % 2];
  std::memcpy(mail[f.lane], words, 4 * count);
  arrive(f.warp->barrier);
  return mail;
}

template <typename T>
T shuffle_xor(T value, int mask) {
  const auto word = bits_of<uint32_t>(value);
  const unsigned lane = self().lane;
  return bits_of<T>(post(&word, 1)[lane ^ mask][0]);
}

inline uint32_t shuffle(uint32_t word, int lane) { return post(&word, 1)[lane][0]; }

// --- launch ---

enum Residency { kBlocksInTurn, kAllBlocks };  // an ordinary launch; a cooperative one

inline char* stack_of(size_t fiber) {  // kept from launch to launch
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
  f.context.uc_stack.ss_sp = stack;
  f.context.uc_stack.ss_size = kStackBytes;
  f.context.uc_link = nullptr;
  makecontext(&f.context, fiber_main, 0);
}

// Runs the blocks first .. first + count - 1 together, to the end.
inline void run_blocks(Machine& m, unsigned first, unsigned count, size_t shared_bytes) {
  const unsigned threads = m.block_size.x * m.block_size.y * m.block_size.z;
  m.blocks = std::vector<Block>(count);
  m.fibers = std::vector<Fiber>(size_t(count) * threads);
  m.running = m.fibers.size();
  m.ready.clear();
  m.awaiting.clear();
  for (unsigned b = 0; b < count; ++b) {
    Block& block = m.blocks[b];
    block.index = unravel(first + b, m.grid_size);
    block.shared.reset(new unsigned char[shared_bytes]);
    block.shared_bytes = shared_bytes;
    std::memset(block.shared.get(), 0xff, shared_bytes);
    block.barrier.expected = threads;
    block.warps = std::vector<Warp>((threads + 31) / 32);
    for (Warp& warp : block.warps) warp.slow = m.random() % 2;
    for (unsigned i = 0; i < threads; ++i) {
      Fiber& f = m.fibers[size_t(b) * threads + i];
      f.block = &block;
      f.warp = &block.warps[i / 32];
      f.warp->barrier.expected++;
      f.index = unravel(i, m.block_size);
      f.lane = i % 32;
      prepare(f, stack_of(size_t(b) * threads + i));
      if (late_polls() > 0 && count > 1 && b == count - 1)
        m.late.push_back(&f);
      else
        make_ready(m, &f);
    }
  }
  while (m.running > 0) {
    if (late_polls() == 0 || m.ready.empty())
      std::move(m.late.begin(), m.late.end(), std::back_inserter(m.ready)), m.late.clear();
    if (m.ready.empty())
      throw Fault("deadlock: " + std::to_string(m.running) +
                  " threads wait at a barrier or for a value that the others never reach");
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
  m.grid_size = grid;
  m.block_size = block;
  m.body = &body;
  m.random.seed(seed());
  if (residency == kAllBlocks) {
    run_blocks(m, 0, blocks, shared_bytes);
  } else {
    for (unsigned b = 0; b < blocks; ++b) run_blocks(m, b, 1, shared_bytes);
  }
  return cudaSuccess;
}

}  // namespace simt

#define threadIdx (simt::self().index)
#define blockIdx (simt::self().block->index)
#define blockDim (simt::machine()->block_size)
#define gridDim (simt::machine()->grid_size)
inline void __syncthreads() { simt::arrive(simt::self().block->barrier); }
inline void __syncwarp() { simt::arrive(simt::self().warp->barrier); }
inline void __trap() { throw simt::Fault("a trap"); }
