// A thread block of a persistent kernel, forward or backward: its share of the units and of the
// batch rows, its shared memory, and the order of work in a step (Block::run_pass). A pass is the
// work of one step for kRowTile batch rows.
#pragma once
#include "persistent_product.h"

namespace fastlstm {

// The prefetch distance in time steps. A load from memory may take longer than one step.
constexpr int kPrefetch = 2;

template <typename T>
__device__ Gates<float> to_float(const Gates<T>& gates) {
  return {float(gates.i), float(gates.f), float(gates.g), float(gates.o)};
}

// Returns one of two directions, with its pointers in registers: otherwise each use loads them.
template <class Direction>
__device__ Direction in_registers(const Direction (&direction)[2], int index) {
  Direction fetched = direction[index];
  fetched.for_each_pointer([](auto*& pointer) { pointer = in_register(pointer); });
  return fetched;
}

// A unit of a row in a step, for one thread. All flags are false for a row that does not exist.
struct ThreadUnit {
  int pass_row;       // the index of the row in the pass
  int row;            // the index of the row in the group of the block
  int unit;           // the index of the unit in the block
  bool is_exchanged;  // whether other blocks load its value
  bool exists;        // whether the tensors have this unit at this step. Else it is padding
  bool live;          // whether the row has not ended. Otherwise 0 is stored
  int batch_row;
};

// Floats that one load reads.
template <class Floats>
struct alignas(sizeof(Floats)) Aligned {
  Floats value;
};

// A step of a walk: its time step t and the first flat row `offset` of that time step. The same for
// the steps that the walk visits before (_before) and after it (_after), and for the prefetch.
struct TimeStep {
  int t, t_before, t_prefetch;
  int64_t offset, offset_before, offset_after, offset_prefetch;
};

// P: the kind of arithmetic (persistent_product.h). kRows: the rows of the block's slice of W_hh,
// in backward kUnits. kUnits: the units of the block. kRowTile: the batch rows of a pass.
template <class P, int kRows, int kUnits, int kRowTile>
struct Block {
  using T = typename P::T;
  using Product = WarpProduct<P, kRows, kRowTile>;
  static constexpr int kNTiles = Product::kNTiles;
  static constexpr int kUnitsPerThread = divide_up(kUnits * kRowTile, kThreads);
  static constexpr int kChunks =
      chunks_in_flight(std::is_same<P, Ffma>::value, kRows == kUnits, kUnits, kRowTile);

  const Sequence& sequence;
  const Tiling& tiling;
  const bool first_reverse;
  const int k_size;  // CudaTask::k_size, the number of values in an exchanged row
  const int chunks = divide_up(k_size, kPerChunk<T>);
  // The last block along the units may have fewer units than kUnits.
  const int unit_block = blockIdx.x % tiling.unit_blocks;
  const int first_unit = unit_block * kUnits;
  const int units = min(sequence.hidden_size - first_unit, kUnits);
  const int exchanged_units = min(tiling.exchange_width - first_unit, kUnits);
  const int group = blockIdx.x / tiling.unit_blocks % tiling.row_groups;
  const int passes = divide_up(tiling.group_rows, kRowTile);
  const int direction = blockIdx.x / tiling.unit_blocks / tiling.row_groups;
  const bool reverse = first_reverse || direction == 1;
  const int thread = in_register(static_cast<int>(threadIdx.x));
  const int lane = thread % 32, warp = thread / 32;
  const int first_chunk = warp * chunks / kWarps, end_chunk = (warp + 1) * chunks / kWarps;
  // The arrays in shared memory, as shared_bytes_of (plan.h) counts them: the slice; partial_sums
  // [kWarps][kRowTile][partial_stride(kRows)]; cell_state [group_rows][kUnits]; for each row of the
  // group its batch row and its length, which is -1 if the row does not exist.
  uint32_t* const slice = reinterpret_cast<uint32_t*>(shared_memory());
  float* const partial_sums = reinterpret_cast<float*>(slice + kRows * chunks * 16);
  float* const cell_state = partial_sums + kWarps * kRowTile * partial_stride(kRows);
  int* const batch_row = reinterpret_cast<int*>(cell_state + tiling.group_rows * kUnits);
  int* const length = batch_row + tiling.group_rows;
  // The milliseconds that a lane waits for a value. It waits 20 times as long for its first value,
  // because another kernel (NCCL's, for example) may keep the other blocks from starting.
  mutable uint32_t current_wait_limit = 20 * sequence.wait_limit;

  // The number of steps of a batch row, clamped because the host cannot check lengths on a device.
  __device__ int live_steps(int row) const {
    if (!sequence.lengths) return sequence.steps;
    return static_cast<int>(max(min(sequence.lengths[row], int64_t(sequence.steps)), int64_t(0)));
  }

  // Sets batch_row and length. Row i of the group: `group` + row_groups * i in the sorted batch.
  __device__ void find_rows() const {
    for (int i = thread; i < tiling.group_rows; i += kThreads) {
      const int position = group + tiling.row_groups * i;
      const bool exists = position < sequence.batch;
      const int row =
          exists && sequence.order ? static_cast<int>(sequence.order[position]) : position;
      batch_row[i] = row;
      length[i] = exists ? live_steps(row) : -1;
    }
  }

  // Fills the slice with element(row, k) (load_slice), and cell_state with `initial` [B,H].
  template <class Element>
  __device__ void load(const float* initial, const Element& element) const {
    find_rows();
    load_slice<P, kRows>(slice, chunks, element);
    __syncthreads();
    for (int i = thread; i < tiling.group_rows * kUnits; i += kThreads)
      if (length[i / kUnits] >= 0 && i % kUnits < units)
        cell_state[i] = initial[int64_t(batch_row[i / kUnits]) * sequence.hidden_size + first_unit +
                                i % kUnits];
    __syncthreads();
  }

  // The first flat row of a step, or 0 for a step that does not exist.
  __device__ int64_t offset(int t) const {
    if (t < 0 || t >= sequence.steps) return 0;
    return sequence.offsets ? sequence.offsets[t] : int64_t(t) * sequence.batch;
  }

  // The j-th unit that this thread computes in a pass of step t.
  __device__ ThreadUnit thread_unit(int t, int pass, int j) const {
    const int index = thread + j * kThreads, row = index / kUnits;
    ThreadUnit at = {row, pass * kRowTile + row, index % kUnits, false, false, false, 0};
    if (at.pass_row >= kRowTile || at.row >= tiling.group_rows) return at;
    const int steps = length[at.row];
    const bool in_memory = t < steps || (steps >= 0 && !sequence.offsets);  // packed: no padding
    at.is_exchanged = in_memory && at.unit < exchanged_units;
    at.exists = in_memory && at.unit < units;
    at.live = at.exists && t < steps;
    at.batch_row = batch_row[at.row];
    return at;
  }
  __device__ int column(const ThreadUnit& at) const { return first_unit + at.unit; }
  __device__ int64_t state_index(const ThreadUnit& at) const {
    return int64_t(at.batch_row) * sequence.hidden_size + column(at);
  }
  // c of the unit in forward, dL/dc in backward. It stays in shared memory from step to step.
  __device__ float& cell_state_of(const ThreadUnit& at) const {
    return cell_state[at.row * kUnits + at.unit];
  }

  __device__ bool is_live(int t, int row) const {
    return row < tiling.group_rows && t < length[row];
  }
  __device__ unsigned char is_reset(int t, int row) const {
    if (!sequence.reset) return 0;
    return reinterpret_cast<const unsigned char*>(
        sequence.reset)[int64_t(t) * sequence.batch + batch_row[row]];
  }
  __device__ bool is_first_step(int t, int row) const {
    return t == (reverse ? length[row] - 1 : 0);
  }
  __device__ bool is_last_step(int t, int row) const {
    return t == (reverse ? 0 : length[row] - 1);
  }

  // Whether any row of a pass is live. All threads of the block get the same answer.
  __device__ bool pass_is_live(int t, int pass) const {
#pragma unroll 1  // mostly the first row is live
    for (int row = 0; row < kRowTile; ++row)
      if (is_live(t, pass * kRowTile + row)) return true;
    return false;
  }

  // Multiplies the slice by multiplied_row(row) for the rows of a pass. After the next barrier
  // `sums` returns the results.
  template <class RowOf>
  __device__ void multiply(int pass, const RowOf& multiplied_row) const {
    MultipliedRow<T> rows[kNTiles];
#pragma unroll
    for (int j = 0; j < kNTiles; ++j) rows[j] = multiplied_row(pass * kRowTile + 8 * j + lane / 4);
    __syncwarp();  // keeps the loads above, and those of load_inputs, before the wait below
    LanePieces<T> lane_pieces[kNTiles];
#pragma unroll
    for (int j = 0; j < kNTiles; ++j)
      lane_pieces[j] = pieces_of_lane(rows[j], end_chunk, k_size, lane);
    Product product{slice, chunks, lane};
    add_chunks<kChunks>(product, lane_pieces, first_chunk, end_chunk, current_wait_limit);
    // The widest tile (kChunks = 1) has no register left, so it keeps the limit of the first value.
    for (const auto& pieces : lane_pieces)
      if (kChunks > 1 && pieces.is_exchanged) current_wait_limit = sequence.wait_limit;
    product.store(partial_sums + warp * kRowTile * partial_stride(kRows));
  }

  // Runs the time steps 0 to T - 1 of a walk, or if `from_last` T - 1 to 0.
  template <class Walk>
  __device__ void run(const Walk& walk, bool from_last) const {
    int64_t offset_before = 0;
    for (int n = 0; n < sequence.steps; ++n) {
      const int t = from_last ? sequence.steps - 1 - n : n, inc = from_last ? -1 : 1;
      const int t_prefetch = t + kPrefetch * inc;
      const TimeStep step = {
          t, t - inc, t_prefetch, offset(t), offset_before, offset(t + inc), offset(t_prefetch)};
      for (int pass = 0; pass < passes; ++pass) run_pass(walk, step, pass);
      offset_before = step.offset;
    }
  }

  // Runs one step for kRowTile batch rows. First it loads the inputs that no other block computes,
  // then it waits for the other blocks. Last it stores the results that no other block waits for.
  template <class Walk>
  __device__ void run_pass(const Walk& walk, const TimeStep& step, int pass) const {
    typename Walk::Inputs inputs[kUnitsPerThread];
#pragma unroll
    for (int j = 0; j < kUnitsPerThread; ++j) {
      const ThreadUnit at = thread_unit(step.t, pass, j);
      if (step.t_prefetch >= 0 && at.exists && is_live(step.t_prefetch, at.row))
        walk.prefetch_inputs(at, step.offset_prefetch + at.batch_row);
      inputs[j] = walk.load_inputs(step, at);
    }
    if (pass_is_live(step.t, pass))
      multiply(pass, [&](int row) { return walk.multiplied_row(step, row); });
    __syncthreads();
    typename Walk::Result results[kUnitsPerThread];
#pragma unroll
    for (int j = 0; j < kUnitsPerThread; ++j) results[j] = walk.compute_and_publish(inputs[j]);
#pragma unroll
    for (int j = 0; j < kUnitsPerThread; ++j) walk.store(step, inputs[j].at, results[j]);
    __syncthreads();  // before the next pass overwrites the sums
  }

  // Returns the products of batch row b of the pass with one or four rows of the slice, from r on.
  template <class Sum>
  __device__ Sum sums(int b, int r) const {
    Sum sum = {};
    for (int w = 0; w < kWarps; ++w) {
      const auto part = *reinterpret_cast<const Aligned<Sum>*>(
          partial_sums + (w * kRowTile + b) * partial_stride(kRows) + r);
      sum = sum + part.value;
    }
    return sum;
  }
};

template <class Walk>
__global__ void __launch_bounds__(kThreads, 1)
    walk_kernel(typename Walk::Args args, Tiling tiling) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
  __trap();  // the host code launches no persistent kernel on older GPUs
#else
  Walk{args, tiling}.walk();
#endif
}

template <template <class, int, int> class Walk, class P, class Args>
cudaError_t launch_tile(const Args& args, const Tiling& tiling, cudaStream_t stream) {
  cudaError_t error = cudaErrorInvalidValue;  // if the tile shape is not compiled
  const auto launch_if_planned = [&](auto units, auto rows) {
    if constexpr (is_compiled(std::is_same<P, Ffma>::value, units, rows))
      if (tiling.units == units && tiling.row_tile == rows)
        error = launch_cooperative(walk_kernel<Walk<P, units, rows>>,
                                   dim3(static_cast<unsigned>(tiling.blocks())), dim3(kThreads),
                                   static_cast<size_t>(tiling.shared_bytes), stream, args, tiling);
  };
  constexpr std::integral_constant<int, 8> k8{};
  constexpr std::integral_constant<int, 16> k16{};
  constexpr std::integral_constant<int, 32> k32{};
  launch_if_planned(k8, k8), launch_if_planned(k8, k16);
  launch_if_planned(k16, k8), launch_if_planned(k16, k16);
  launch_if_planned(k32, k8), launch_if_planned(k32, k16);
  return error;
}

template <template <class, int, int> class Walk, template <typename> class Args, typename T>
cudaError_t launch_planned(const Args<T>& args, const Tiling& tiling, cudaStream_t stream) {
  if constexpr (std::is_same<T, bfloat16>::value)
    return launch_tile<Walk, BFloat16Mma>(args, tiling, stream);
  else if constexpr (std::is_same<T, float16>::value)
    return launch_tile<Walk, Float16Mma>(args, tiling, stream);
  else
    return tiling.ffma ? launch_tile<Walk, Ffma>(args, tiling, stream)
                       : launch_tile<Walk, Tf32Mma>(args, tiling, stream);
}

}  // namespace fastlstm
