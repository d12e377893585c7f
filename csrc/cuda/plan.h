// Which engine walks a layer on which device, and how the persistent engine divides the work. Plain
// C++ without CUDA: the tests ask it about devices that are not here.
//
// The persistent engine gives every block `units` hidden units and a group of batch rows. A block
// keeps its slice of W_hh in shared memory for the whole sequence; in each step it multiplies the
// slice with the state of all units, which its neighbors (same rows, other units) computed in the
// step before. So fewer units mean less arithmetic per block, and more blocks that read the
// whole state.
#pragma once
#include <algorithm>
#include <cstdint>

#include "../dtype_list.h"
#include "../parts.h"

namespace fastlstm {

constexpr int kWarps = 8, kThreads = 32 * kWarps;
constexpr int kChunkBytes = 64;     // of the state of one row: what 4 lanes load, 16 bytes each
constexpr int kPartialPadding = 4;  // floats between rows of partial sums, against bank conflicts

// The constants of the predictions, from data sheets and arithmetic: name, value, meaning. Those of
// cuDNN are of its standard kernels, the least that they take at any size and clock.
#define FASTLSTM_PLAN_CONSTANTS(X)                                                                \
  X(sm_bytes_per_clock, 64)      /* from L2 into one SM */                                        \
  X(shared_bytes_per_clock, 128) /* of one SM */                                                  \
  X(trip_clocks, 875)            /* from a store in one SM to another that sees it, through L2 */ \
  X(cell_clocks, 612)            /* of a pass beside its product: 300 to 600 instructions a */    \
                                 /* warp, two warps a scheduler, half of it waiting */            \
  X(marking_share, 0.4)          /* of L2's rate, at which memory is marked as unwritten */       \
  X(repeated_polls, 1)           /* fruitless, from 64 rows on and in backward */                 \
  X(prologue_us, 35)             /* of a walk before its first step: launches, W_hh to shared */  \
  X(host_walk_us, 75)            /* of the host, which launches the next walk while one runs */   \
  X(stepwise_us, 6)              /* a GEMM and a kernel that have almost nothing to do */         \
  X(host_step_us, 12)            /* launching both, unless in a CUDA graph */                     \
  X(gemm_share, 0.6)             /* of the peak, in a step's GEMM */                              \
  X(cudnn_call_us, 10)                                                                            \
  X(cudnn_step_us, 6)                                                                             \
  X(cudnn_stacked_step_us, 4.4) /* of a layer, of several that it walks at once */

// What the planner knows of a device.
struct CudaDevice {
  int sm_count;
  int capability;        // 10 * major + minor
  int64_t shared_bytes;  // a block may ask for
  double clock_ghz;
  double l2_bytes_per_clock;  // an SM's share of what L2 gives to all
  double mma_per_clock;       // 16-bit multiply-adds of an SM per clock; half of it with TF32
#define FASTLSTM_MEMBER(name, value) double name = value;
  FASTLSTM_PLAN_CONSTANTS(FASTLSTM_MEMBER)
#undef FASTLSTM_MEMBER

  double clock_us() const { return 1e-3 / clock_ghz; }
  double l2_bytes_per_us() const { return l2_bytes_per_clock * std::max(sm_count, 1) / clock_us(); }

  // From data sheets; where parts differ, of the slower: GeForce has half of the rate of mma with
  // float32 sums. `ghz`: the device's own clock, 0 if nobody knows it.
  static CudaDevice of(int sm_count, int capability, double ghz = 0) {
    const auto device = [&](int64_t kib, double usual_ghz, double l2, double mma) {
      return CudaDevice{sm_count, capability, kib * 1024, ghz > 0 ? ghz : usual_ghz, l2, mma};
    };
    if (capability >= 120) return device(99, 2.4, 12.2, 256);
    if (capability >= 100) return device(227, 1.9, 28.4, 2048);
    if (capability >= 90) return device(227, 1.75, 23.8, 1024);
    if (capability == 80) return device(163, 1.41, 26.3, 1024);
    if (capability >= 80) return device(99, 1.7, 13.8, 256);
    return device(48, 1.5, 25, 512);
  }
};

// The constants by name.
struct PlanConstant {
  const char* name;
  double CudaDevice::* value;
};
inline constexpr PlanConstant kPlanConstants[] = {
    {"clock_ghz", &CudaDevice::clock_ghz},
    {"l2_bytes_per_clock", &CudaDevice::l2_bytes_per_clock},
    {"mma_per_clock", &CudaDevice::mma_per_clock},
#define FASTLSTM_ROW(name, value) {#name, &CudaDevice::name},
    FASTLSTM_PLAN_CONSTANTS(FASTLSTM_ROW)
#undef FASTLSTM_ROW
};

struct Task {
  int64_t hidden_size, batch, steps;
  int directions;
  Dtype dtype;
  bool allow_tf32;     // float32 products may round their factors to TF32
  bool only_stepwise;  // proj_size > 0, layer normalization
  bool backward;

  bool ffma() const { return dtype == Dtype::kFloat32 && !allow_tf32; }
  int64_t element_bytes() const { return bytes_of(dtype); }
  // Hidden units of a row as blocks exchange it: with zeros after them, so that rows of h (of four
  // gates, in backward) are whole pieces of 16 bytes. The last block's units have room for them.
  int64_t exchange_width() const {
    const int64_t piece = std::max<int64_t>((backward ? 4 : 16) / element_bytes(), 1);
    return round_up(hidden_size, piece);
  }
  // A block multiplies its `matrix_rows` rows of W_hh (its columns, in backward) with vectors of
  // this many values: h forward, d_gates backward.
  int64_t depth() const { return (backward ? 4 : 1) * exchange_width(); }
  // Multiply-adds of an SM per clock.
  double rate(const CudaDevice& device) const {
    switch (dtype) {
      case Dtype::kFloat64:
        return 64;
      case Dtype::kFloat32:
        return ffma() ? 128 : device.mma_per_clock / 2;
      case Dtype::kBFloat16:
      case Dtype::kFloat16:
        return device.mma_per_clock;
    }
    return 0;
  }
  int64_t chunks() const { return divide_up(depth(), kChunkBytes / element_bytes()); }
};

// What crosses into the kernel.
struct Tiling {
  int units = 0;           // hidden units of a block
  int row_tile = 0;        // batch rows that a block treats at once
  int unit_blocks = 0;     // blocks that share the units; they need each other's results every step
  int row_groups = 0;      // groups of batch rows, independent of each other
  int group_rows = 0;      // rows of the largest group
  int directions = 0;      // walked in the same launch
  int exchange_width = 0;  // Task::exchange_width
  bool ffma = false;       // Task::ffma
  int64_t shared_bytes = 0;

  int blocks() const { return unit_blocks * row_groups * directions; }
  bool has_passes() const { return group_rows > row_tile; }  // of a block, over its rows
};

struct Plan {
  bool persistent = false;
  Tiling tiling;
  double step_us = 0;           // predicted, of the chosen engine, all directions together
  double stepwise_step_us = 0;  // predicted, of the stepwise engine

  const char* engine() const { return persistent ? "persistent" : "stepwise"; }
};

constexpr int matrix_rows(bool backward, int units) { return backward ? units : 4 * units; }

// The tile shapes that persistent_forward.cu and persistent_backward.cu instantiate.
constexpr bool is_compiled(bool ffma, int units, int row_tile) {
  return (units == 8 || units == 16 || units == 32) && (row_tile == 8 || (row_tile == 16 && !ffma));
}

// Chunks of a row that a warp has asked for and not yet seen, at most. Backward has rows four times
// as long. FFMA and the widest tile take long for a chunk, and the latter's sums leave few
// registers.
constexpr int chunks_in_flight(bool ffma, bool backward, int units, int row_tile) {
  const int columns = row_tile / 8;
  if (ffma) return 2;
  if (matrix_rows(backward, units) * row_tile >= 2048) return 1;
  return (backward ? 8 : 4) / columns;
}

// Bytes of shared memory of a block, in the order in which they lie there (persistent_block.h).
inline int64_t shared_bytes_of(const Task& task, const Tiling& tiling) {
  const int64_t matrix = matrix_rows(task.backward, tiling.units);
  const int64_t weights = matrix * task.chunks() * kChunkBytes;
  const int64_t partials = int64_t{4} * kWarps * tiling.row_tile * (matrix + kPartialPadding);
  const int64_t state = int64_t{4} * tiling.group_rows * tiling.units;
  const int64_t rows = int64_t{4} * 2 * tiling.group_rows;
  return weights + partials + state + rows;
}

inline Tiling make_tiling(const Task& task, int units, int row_tile, int row_groups,
                          int directions) {
  Tiling tiling;
  tiling.units = units, tiling.row_tile = row_tile, tiling.row_groups = row_groups;
  tiling.unit_blocks = static_cast<int>(divide_up(task.hidden_size, units));
  tiling.group_rows = static_cast<int>(divide_up(task.batch, row_groups));
  tiling.directions = directions;
  tiling.exchange_width = static_cast<int>(task.exchange_width());
  tiling.ffma = task.ffma();
  tiling.shared_bytes = shared_bytes_of(task, tiling);
  return tiling;
}

// One step of all directions.
inline double predict_persistent(const Task& task, const Tiling& tiling, const CudaDevice& device) {
  const double bytes = static_cast<double>(task.element_bytes() * task.depth());
  const double matrix = matrix_rows(task.backward, tiling.units);
  const double passes = static_cast<double>(divide_up(tiling.group_rows, tiling.row_tile));
  const double l2 = device.l2_bytes_per_us();
  const double state_bytes = bytes * static_cast<double>(task.batch) * tiling.directions;
  // A warp polls what it has in flight before it is there, and again.
  const int in_flight =
      kWarps * chunks_in_flight(task.ffma(), task.backward, tiling.units, tiling.row_tile);
  const double in_vain = std::min(1.0, double(in_flight) / double(task.chunks()));
  const double polls = task.backward || task.batch >= 64 ? 1 + device.repeated_polls * in_vain : 1;
  const double exchange =
      polls * std::max(tiling.group_rows * bytes / device.sm_bytes_per_clock * device.clock_us(),
                       state_bytes * tiling.unit_blocks / l2);
  const double marking = state_bytes / (device.marking_share * l2);  // in memory, as unwritten
  const double multiply = std::max(
      matrix * bytes / device.shared_bytes_per_clock,  // reading the slice from shared memory
      matrix * static_cast<double>(task.depth()) * tiling.row_tile / task.rate(device));
  const double reduce = 2 * 4.0 * kWarps * tiling.row_tile * matrix / device.shared_bytes_per_clock;
  const double launches = static_cast<double>(task.directions) / tiling.directions;
  const double pass = (multiply + reduce + device.cell_clocks) * device.clock_us();
  // While the results of one pass travel, the block works on the next.
  const double trip = device.trip_clocks * device.clock_us();
  return launches * (exchange + marking + std::max(trip + pass, passes * pass));
}

inline double predict_stepwise(const Task& task, const CudaDevice& device) {
  const double b = static_cast<double>(task.batch), h = static_cast<double>(task.hidden_size);
  const double gemm = 4 * h * h * std::max(b, 16.0) /
                      (device.gemm_share * task.rate(device) * std::max(device.sm_count, 1)) *
                      device.clock_us();
  const double weights =
      4 * h * h * static_cast<double>(task.element_bytes()) / device.l2_bytes_per_us();
  return task.directions *
         std::max(device.host_step_us, device.stepwise_us + std::max(gemm, weights));
}

// A division that tests and measurements request; 0 leaves the choice to the planner.
struct Division {
  int units = 0, row_tile = 0, row_groups = 0;
};

// The fastest division of the persistent engine as predicted; a stepwise plan where none fits.
inline Plan plan_persistent(const Task& task, const CudaDevice& device,
                            const Division& forced = {}) {
  Plan best;
  best.step_us = best.stepwise_step_us = predict_stepwise(task, device);
  const bool possible = task.dtype != Dtype::kFloat64 && !task.only_stepwise &&
                        device.capability >= 80 && task.hidden_size > 0 && task.batch > 0 &&
                        task.steps > 0 && std::max(task.batch, task.steps) < INT32_MAX;
  if (!possible || task.hidden_size > (1 << 20)) return best;
  for (int directions = task.directions; directions >= 1; --directions) {
    for (int units : {8, 16, 32}) {
      for (int row_tile : {8, 16}) {
        if (!is_compiled(task.ffma(), units, row_tile)) continue;
        if (forced.units && units != forced.units) continue;
        if (forced.row_tile && row_tile != forced.row_tile) continue;
        const int64_t room = device.sm_count / (divide_up(task.hidden_size, units) * directions);
        const int64_t useful = divide_up(task.batch, 8);  // a tile has no fewer rows
        const int64_t first = forced.row_groups ? forced.row_groups : 1;
        const int64_t last = forced.row_groups ? forced.row_groups : std::min(room, useful);
        for (int64_t groups = first; groups <= std::min({last, room, task.batch}); ++groups) {
          const Tiling tiling =
              make_tiling(task, units, row_tile, static_cast<int>(groups), directions);
          // All blocks must run at once, each with the shared memory it needs.
          if (tiling.blocks() > device.sm_count || tiling.shared_bytes > device.shared_bytes)
            continue;
          const double us = predict_persistent(task, tiling, device);
          if (best.persistent && us >= best.step_us) continue;
          best.persistent = true;
          best.step_us = us;
          best.tiling = tiling;
        }
      }
    }
  }
  return best;
}

inline Plan plan(const Task& task, const CudaDevice& device) {
  Plan best = plan_persistent(task, device);
  const double steps = static_cast<double>(task.steps);
  if (best.persistent && task.steps > 1 &&
      best.step_us + device.prologue_us / steps < best.stepwise_step_us)
    return best;
  Plan stepwise;
  stepwise.step_us = stepwise.stepwise_step_us = best.stepwise_step_us;
  return stepwise;
}

// One pass of a stack of `layers` such layers, by a plan and by cuDNN; without the products before
// and after the walk, which both have. What starts is one layer after the other, the host ahead.
inline double predict_stack(const Task& task, const Plan& plan, int layers,
                            const CudaDevice& device) {
  const double start = plan.persistent ? device.prologue_us : 0;
  const double walk = start + static_cast<double>(task.steps) * plan.step_us;
  return layers * std::max(device.host_walk_us, walk);
}

inline double predict_cudnn(const Task& task, int layers, const CudaDevice& device) {
  const double step = layers > 1 ? layers * device.cudnn_stacked_step_us : device.cudnn_step_us;
  return device.cudnn_call_us + static_cast<double>(task.steps) * step;
}

}  // namespace fastlstm
