// Runs the grid of a kernel on one thread of the host. A warp is a set of groups of lanes that
// stand at the same instruction; a warp gets a slice of time, then another one does, drawn at
// random.
#pragma once
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "kernel.h"
#include "memory.h"

namespace ptx {

struct Options {
  unsigned seed = 1;
  bool random_lanes = false;  // any lanes of a warp may run ahead, wherever PTX lets them
  bool delays = false;        // relaxed stores reach memory late and in any order
  int patience = 20'000'000;  // instructions of warps without any progress: a deadlock
  int seed_offset = 0;
  unsigned resident_blocks = 1024;
  int shared_bytes = 227 * 1024;  // that a block may ask for
};
Options& options();

struct Dim3 {
  uint32_t x = 1, y = 1, z = 1;
  uint64_t count() const { return uint64_t{x} * y * z; }
};

struct Launch {
  const Kernel* kernel;
  Dim3 grid, block;
  std::vector<unsigned char> parameters;
  size_t shared_bytes;
  bool cooperative;
};

// To the end of the grid. Throws a Fault.
void run(const Launch& launch);

// --- for the instructions ---

struct Group {
  uint32_t pc = 0, lanes = 0, members = 0;
  enum State : uint8_t { kReady, kAtWarpBarrier, kAtCollective, kAtBlockBarrier } state = kReady;
};

struct Block;
struct Machine;

struct Warp {
  Machine* machine = nullptr;
  Block* block = nullptr;
  uint32_t index = 0;  // in the block
  uint32_t alive = 0;  // lanes that have not exited
  uint32_t epoch = 0;  // warp barriers passed
  bool at_block_barrier = false, slow = false;
  std::vector<Group> groups;
  std::vector<unsigned char> registers;
  std::vector<uint32_t> predicates;
  std::vector<unsigned char> arguments;  // of a call, of lane after lane

  template <typename V>
  V* lanes(uint32_t at) {
    return reinterpret_cast<V*>(registers.data() + at);
  }
};

struct Block {
  uint32_t index = 0;  // in the grid
  uint32_t warps_alive = 0, warps_waiting = 0;
  uint32_t epoch = 0;  // block barriers passed
  std::vector<Warp> warps;
  std::vector<unsigned char> shared, written;  // written: 1 where shared memory has a value
  std::vector<Shadow> shadow;                  // one per word
};

// A relaxed store on its way to memory.
struct Delayed {
  uint64_t address;
  uint32_t bytes, block, thread;
  unsigned char value[16];
};

struct Machine {
  const Launch& launch;
  uint32_t number = 0;  // of the launch
  int without_progress = 0;
  std::minstd_rand random;
  std::vector<Block> blocks;
  std::vector<Delayed> delayed;

  void deliver(size_t index);                         // one of them
  void deliver_to(uint64_t address, uint32_t bytes);  // those that overlap
};

[[noreturn]] void fault(const Warp& warp, const Instruction& in, int lane, const std::string& what);

template <typename F>
inline void for_lanes(uint32_t lanes, const F& f) {
  if (lanes == kAllLanes) {
    for (int lane = 0; lane < kLanes; ++lane) f(lane);
  } else {
    for (; lanes; lanes &= lanes - 1) f(__builtin_ctz(lanes));
  }
}

}  // namespace ptx
