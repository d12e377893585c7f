// Runs a grid on one host thread. The lanes of a warp form groups; the lanes of a group are at the
// same instruction. A warp runs for a short random time, then another warp, chosen at random, runs.
#pragma once
#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "kernel.h"
#include "memory.h"

namespace ptx {

struct Options {
  unsigned seed = 1;
  bool random_lanes = false;      // whether lanes may run ahead of their warp if PTX allows it
  bool delays = false;            // whether relaxed stores reach memory late and in any order
  uint64_t nanoseconds = 0;       // the clock; each read sets it forward by a microsecond
  int patience = 20'000'000;      // after so many instructions without progress there is a deadlock
  int seed_offset = 0;            // added to the seed
  int shared_bytes = 227 * 1024;  // the most shared memory of a block
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

// Runs a launch to the end of its grid. Throws a Fault for an error of the kernel.
void run(const Launch& launch);

// --- the state of a running grid, for the handlers of instructions ---

// Lanes of a warp that are at instruction `pc`. At a warp barrier, `members` is the barrier's mask.
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
  uint32_t alive = 0;  // the mask of lanes that have not exited
  uint32_t epoch = 0;  // the number of warp barriers passed
  bool at_block_barrier = false;
  bool slow = false;  // whether the warp is chosen less often
  std::vector<Group> groups;
  std::vector<unsigned char> registers;
  std::vector<uint32_t> predicates;
  std::vector<unsigned char> arguments;  // [lane][argument_bytes], the arguments of a call

  // The values of a register in all lanes.
  template <typename V>
  V* lanes(uint32_t at) {
    return reinterpret_cast<V*>(registers.data() + at);
  }
};

struct Block {
  uint32_t index = 0;  // in the grid
  uint32_t warps_alive = 0, warps_waiting = 0;
  uint32_t epoch = 0;  // the number of block barriers passed
  std::vector<Warp> warps;
  std::vector<unsigned char> shared, written;  // written: 1 where shared memory has a value
  std::vector<Shadow> shadow;                  // one for each 32-bit word of shared memory
};

// A relaxed store that has not reached memory yet.
struct Delayed {
  uint64_t address;
  uint32_t bytes, block, thread;
  unsigned char value[16];
};

// The state of a launch.
struct Machine {
  const Launch& launch;
  uint32_t launch_number = 0;
  int without_progress = 0;  // the number of instructions since the last progress
  std::minstd_rand random;
  std::vector<Block> blocks;
  std::vector<Delayed> delayed;

  void deliver(size_t index);
  // Writes all delayed stores that overlap these bytes.
  void deliver_to(uint64_t address, uint32_t bytes);
};

[[noreturn]] void fault(const Warp& warp, const Instruction& in, int lane, const std::string& what);

template <typename T>
T value_at(const unsigned char* from) {
  T value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

template <typename F>
inline void for_lanes(uint32_t lanes, const F& f) {
  if (lanes == kAllLanes) {
    for (int lane = 0; lane < kLanes; ++lane) f(lane);
  } else {
    for (; lanes; lanes &= lanes - 1) f(__builtin_ctz(lanes));
  }
}

}  // namespace ptx
