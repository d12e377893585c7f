// The planner of the persistent engine: whether and how the engine divides the work of a layer
// among thread blocks. It does not use CUDA, so tests can plan for any device.
//
// Every block gets `units` hidden units and a group of batch rows. It keeps its slice of W_hh in
// shared memory for all steps. In each step it multiplies the slice by h of all units, which the
// blocks with the same rows and other units have computed in the step before. With fewer units a
// block has less to multiply, but more blocks read the whole h.
#pragma once
#include <algorithm>
#include <cstdint>
#include <limits>
#include <optional>

#include "../dtype_list.h"
#include "../parts.h"

namespace fastlstm {

constexpr int kWarps = 8, kThreads = 32 * kWarps;
constexpr int kChunkBytes = 64;     // a chunk of a row; 4 lanes load 16 bytes each
constexpr int kPartialPadding = 4;  // floats between rows of partial sums: no bank conflicts

// What the planner knows about a GPU.
struct CudaDevice {
  int sm_count;
  int capability;        // 10 * major + minor
  int64_t shared_bytes;  // the most shared memory that a block may have

  // A device of this capability, with the shared memory that its data sheet states.
  static CudaDevice of(int sm_count, int capability) {
    const bool is_small = capability >= 120 || capability == 86 || capability == 89;
    const int64_t kib = is_small ? 99 : capability >= 90 ? 227 : capability >= 80 ? 163 : 48;
    return {sm_count, capability, kib * 1024};
  }
};

// What the planner knows about a call.
struct CudaTask {
  int64_t hidden_size, batch, steps;
  int directions;
  Dtype dtype;
  bool allow_tf32;  // whether factors of float32 products may be rounded to TF32
  bool backward = false;

  // Whether products are computed by fused multiply-adds instead of tensor cores.
  bool ffma() const { return dtype == Dtype::kFloat32 && !allow_tf32; }
  // The width of an exchanged row of h, or of a gate in one of d_gates: hidden_size, rounded up to
  // 16 bytes a row. The block with the last units stores zeros after them.
  int64_t exchange_width() const {
    const int64_t multiple = std::max<int64_t>((backward ? 4 : 16) / bytes_of(dtype), 1);
    return round_up(hidden_size, multiple);
  }
  // The number of values in an exchanged row of h or d_gates.
  int64_t k_size() const { return (backward ? 4 : 1) * exchange_width(); }
  int64_t chunks() const { return divide_up(k_size(), kChunkBytes / bytes_of(dtype)); }
};

// A division of the work among blocks. The kernels take it as an argument.
struct Tiling {
  int units;           // the hidden units of a block
  int row_tile;        // the batch rows that a block computes at once, in one pass
  int unit_blocks;     // the blocks of a row group, which divide the units
  int row_groups;      // the groups of batch rows, which are independent of each other
  int group_rows;      // the rows of the largest group
  int directions;      // the directions that one launch computes
  int exchange_width;  // CudaTask::exchange_width
  bool ffma;           // CudaTask::ffma
  int64_t shared_bytes;

  int blocks() const { return unit_blocks * row_groups * directions; }
  bool has_passes() const { return group_rows > row_tile; }  // several passes in a step
};

// The rows of a block's slice: of W_hh in forward, of the transpose of W_hh in backward.
constexpr int matrix_rows(bool backward, int units) { return backward ? units : 4 * units; }

// Whether launch_tile (persistent_block.h) instantiates the kernels for a tile shape.
constexpr bool is_compiled(bool ffma, int units, int row_tile) {
  return (units == 8 || units == 16 || units == 32) && (row_tile == 8 || (row_tile == 16 && !ffma));
}

// The number of chunks of a row that a warp loads at once. Backward loads more, because its rows
// are four times as long. FFMA loads fewer, because it multiplies a chunk for longer. The
// accumulators of the widest tile leave no registers for more than one chunk.
constexpr int chunks_in_flight(bool ffma, bool backward, int units, int row_tile) {
  if (ffma) return 2;
  if (matrix_rows(backward, units) * row_tile >= 2048) return 1;
  return (backward ? 8 : 4) / (row_tile / 8);
}

// Returns the bytes of shared memory of a block: its arrays, in the order of persistent_block.h.
inline int64_t shared_bytes_of(const CudaTask& task, const Tiling& tiling) {
  const int64_t slice_rows = matrix_rows(task.backward, tiling.units), rows = tiling.group_rows;
  const int64_t partial_sums = kWarps * tiling.row_tile * (slice_rows + kPartialPadding);
  const int64_t cell_state = rows * tiling.units;
  return slice_rows * task.chunks() * kChunkBytes + 4 * (partial_sums + cell_state + 2 * rows);
}

inline Tiling make_tiling(const CudaTask& task, int units, int row_tile, int row_groups,
                          int directions) {
  Tiling tiling{};
  tiling.units = units, tiling.row_tile = row_tile, tiling.row_groups = row_groups;
  tiling.unit_blocks = static_cast<int>(divide_up(task.hidden_size, units));
  tiling.group_rows = static_cast<int>(divide_up(task.batch, row_groups));
  tiling.directions = directions, tiling.ffma = task.ffma();
  tiling.exchange_width = static_cast<int>(task.exchange_width());
  tiling.shared_bytes = shared_bytes_of(task, tiling);
  return tiling;
}

// Estimates the clocks that a step of all directions takes, to compare divisions on one GPU. The
// numbers are from an H100's data sheet, or estimated, and not measured.
inline double step_clocks(const CudaTask& task, const Tiling& tiling, int sm_count) {
  constexpr double kL2ToSm = 64;            // bytes per clock that one SM can load from L2
  constexpr double kL2Share = 24;           // bytes per clock for each SM if all SMs load from L2
  constexpr double kSharedMemory = 128;     // bytes per clock of the shared memory of an SM
  constexpr double kExchangeLatency = 900;  // clocks from a store in one SM to a load in another
  constexpr double kPassOverhead = 600;     // clocks of a pass without its product
  // Multiply-adds per clock, in one SM:
  const double multiply_adds = task.ffma() ? 128 : task.dtype == Dtype::kFloat32 ? 512 : 1024;
  const auto k_size = static_cast<double>(task.k_size());
  const double bytes = k_size * static_cast<double>(bytes_of(task.dtype));  // of an exchanged row
  const double slice_rows = matrix_rows(task.backward, tiling.units);
  const double all_rows = static_cast<double>(task.batch) * tiling.directions;
  const double exchange = std::max(tiling.group_rows * bytes / kL2ToSm,
                                   all_rows * bytes * tiling.unit_blocks / (kL2Share * sm_count));
  const double multiply = std::max(slice_rows * bytes / kSharedMemory,
                                   slice_rows * k_size * tiling.row_tile / multiply_adds);
  // Each partial sum is written and read once, and has 4 bytes.
  const double reduce = 2 * 4.0 * kWarps * tiling.row_tile * slice_rows / kSharedMemory;
  const double pass = multiply + reduce + kPassOverhead;
  const auto passes = static_cast<double>(divide_up(tiling.group_rows, tiling.row_tile));
  // While the results of one pass are on their way, the block computes the next pass.
  const double step = exchange + std::max(kExchangeLatency + pass, passes * pass);
  return step * task.directions / tiling.directions;
}

// Returns the division that takes the fewest clocks, or nothing if no division fits: all blocks
// must run at the same time, with the shared memory that they need. All sizes must fit into an int.
inline std::optional<Tiling> best_tiling(const CudaTask& task, const CudaDevice& device) {
  const bool possible = task.dtype != Dtype::kFloat64 && device.capability >= 80 &&
                        task.hidden_size > 0 && task.hidden_size <= (1 << 20) && task.batch > 0 &&
                        task.steps > 0 && std::max(task.batch, task.steps) < INT32_MAX;
  if (!possible) return std::nullopt;
  std::optional<Tiling> best;
  double least = std::numeric_limits<double>::infinity();
  const auto consider = [&](const Tiling& tiling) {
    if (tiling.shared_bytes > device.shared_bytes) return;
    const double clocks = step_clocks(task, tiling, device.sm_count);
    if (clocks < least) best = tiling, least = clocks;
  };
  for (int directions = task.directions; directions >= 1; --directions)
    for (int units : {8, 16, 32}) {
      const int64_t fitting = device.sm_count / (divide_up(task.hidden_size, units) * directions);
      const int64_t useful = divide_up(task.batch, 8);  // the smallest tile has 8 rows
      for (int row_tile : {8, 16})
        for (int groups = 1; groups <= std::min(useful, fitting); ++groups)
          if (is_compiled(task.ffma(), units, row_tile))
            consider(make_tiling(task, units, row_tile, groups, directions));
    }
  return best;
}

}  // namespace fastlstm
