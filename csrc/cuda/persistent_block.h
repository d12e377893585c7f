// A thread block of a persistent kernel: its share of the units and of the batch rows, its shared
// memory, and the product of one pass. A pass is kRowTile of the block's rows in one step. The
// forward walk and the backward walk both use this file.
#pragma once
#include "persistent_product.h"

namespace fastlstm {

// The prefetch distance in time steps: how long before its use a value is prefetched into L2. A
// load from memory may take longer than a step.
constexpr int kPrefetch = 2;

template <typename T>
__device__ Gates<float> to_float(const Gates<T>& gates) {
  return {float(gates.i), float(gates.f), float(gates.g), float(gates.o)};
}

// Copies the pointers of a direction into registers. Otherwise each use would load its pointer
// again, by the index of the direction.
template <class Direction>
__device__ Direction fetch(const Direction (&direction)[2], int index) {
  Direction fetched = direction[index];
  fetched.for_each_pointer([](auto*& pointer) { pointer = in_register(pointer); });
  return fetched;
}

// A unit of a row in a step. One thread computes it. All flags are false for a row that does not
// exist.
struct ThreadUnit {
  int pass_row, row,
      unit;           // index of the row in the pass and in the group, of the unit in the block
  bool is_exchanged;  // other blocks load the value of this unit
  bool exists;        // the layer has this unit; otherwise it pads the exchanged row
  bool live;          // the row has not ended; otherwise this is padding, where 0 is stored
  int batch_row;
};

// A step of a walk: its time and its first flat row, the same of the steps before and after it in
// the order of the walk, and of the step to prefetch (`soon`).
struct TimeStep {
  int t, t_before, t_prefetch;
  int64_t offset, offset_before, offset_after, offset_prefetch;
};

// P: the kind of arithmetic. kRows: the rows of the block's slice of W_hh. kUnits: the units of the
// block. kRowTile: the rows of a pass.
template <class P, int kRows, int kUnits, int kRowTile>
struct Block {
  using T = typename P::T;
  static constexpr int kUnitsPerThread =
      (kUnits * kRowTile + kThreads - 1) / kThreads;  // units of a thread
  static constexpr int kChunks =                      // loaded together
      chunks_in_flight(std::is_same<P, Ffma>::value, kRows == kUnits, kUnits, kRowTile);

  const Sequence& sequence;
  const Tiling& tiling;
  const bool first_reverse;
  const int k_size;  // the number of terms of a product: values in a row of h or of d_gates
  const int chunks = (k_size + kPerChunk<T> - 1) / kPerChunk<T>;
  const int unit_block =
      blockIdx.x % tiling.unit_blocks;  // the last unit_block may have fewer than kUnits
  const int first_unit = unit_block * kUnits;
  const int units = min(sequence.hidden_size - first_unit, kUnits);
  const int exchanged_units = min(tiling.exchange_width - first_unit, kUnits);
  const int group = blockIdx.x / tiling.unit_blocks % tiling.row_groups;
  const int passes = (tiling.group_rows + kRowTile - 1) / kRowTile;
  const int direction = blockIdx.x / tiling.unit_blocks / tiling.row_groups;
  const bool reverse = first_reverse || direction == 1;
  const int thread = in_register(static_cast<int>(threadIdx.x));
  const int lane = thread % 32, warp = thread / 32;
  const int first_chunk = warp * chunks / kWarps, last_chunk = (warp + 1) * chunks / kWarps;
  // The arrays in shared memory, in the order in which shared_bytes_of (plan.h) counts them.
  uint32_t* const slice = reinterpret_cast<uint32_t*>(shared_memory());
  float* const partial_sums = reinterpret_cast<float*>(slice + kRows * chunks * 16);
  float* const cell_state = partial_sums + kWarps * kRowTile * partial_stride(kRows);
  // For each row of the group its batch row, and its length or -1 if the row does not exist.
  int* const batch_row = reinterpret_cast<int*>(cell_state + tiling.group_rows * kUnits);
  int* const length = batch_row + tiling.group_rows;
  // The milliseconds that a lane waits for a value. The first wait may take much longer: until a
  // block has seen values of the blocks that it waits for, these may still wait for a
  // multiprocessor that another kernel (NCCL's, for instance) occupies.
  mutable uint32_t wait_limit = 20 * sequence.wait_limit;

  __device__ void find_rows() const {
    for (int i = thread; i < tiling.group_rows; i += kThreads) {
      const int position = group + tiling.row_groups * i;
      const bool exists = position < sequence.batch;
      const int row =
          exists && sequence.order ? static_cast<int>(sequence.order[position]) : position;
      batch_row[i] = row;
      length[i] = exists ? live_steps(sequence, row) : -1;
    }
  }

  // Fills the slice by load_slice with element(row, k), and the state with values of `initial`
  // [B,H].
  template <class Element>
  __device__ void load(const float* initial, const Element& element) const {
    find_rows();
    load_slice<P, kRows>(slice, chunks, element);
    __syncthreads();  // after find_rows, whose results the next lines read
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

  // The n-th step of a walk that begins with the first or with the last step in time.
  __device__ TimeStep step(int n, bool from_last, int64_t offset_before) const {
    const int t = from_last ? sequence.steps - 1 - n : n, way = from_last ? -1 : 1;
    const int t_prefetch = t + kPrefetch * way;
    return {t, t - way, t_prefetch, offset(t), offset_before, offset(t + way), offset(t_prefetch)};
  }

  // The thread's j-th unit of a pass.
  __device__ ThreadUnit unit(int t, int pass, int j) const {
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
  // The index of the unit in a tensor [B,H].
  __device__ int64_t index(const ThreadUnit& at) const {
    return int64_t(at.batch_row) * sequence.hidden_size + column(at);
  }
  // The unit's cell state, or dL/dc, which is kept from step to step.
  __device__ float& cell_state_of(const ThreadUnit& at) const {
    return cell_state[at.row * kUnits + at.unit];
  }

  __device__ bool is_live(int t, int row) const {
    return row < tiling.group_rows && t < length[row];
  }
  // The byte of the reset flag in memory, 0 or 1.
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
    for (int i = pass * kRowTile; i < (pass + 1) * kRowTile && i < tiling.group_rows; ++i)
      if (t < length[i]) return true;
    return false;
  }

  // Multiplies the slice by the vectors vector_of(row) of the rows of a pass. After the next
  // barrier `sums` returns the results.
  template <class VectorOf>
  __device__ void multiply(int pass, const VectorOf& vector_of) const {
    RowVector<T> vectors[kRowTile / 8];
#pragma unroll
    for (int j = 0; j < kRowTile / 8; ++j)
      vectors[j] = vector_of(pass * kRowTile + 8 * j + lane / 4);
    __syncwarp();  // the loads above are issued before this warp waits for other blocks
    LanePart<T> lane_parts[kRowTile / 8];
#pragma unroll
    for (int j = 0; j < kRowTile / 8; ++j)
      lane_parts[j] = lane_part(vectors[j], last_chunk, k_size, lane);
    WarpProduct<P, kRows, kRowTile> product{slice, chunks, lane, {}};
    add_chunks<kChunks>(product, lane_parts, first_chunk, last_chunk, wait_limit);
    // The widest tile has no register left for it. It keeps the long limit for all waits.
    for (const auto& part : lane_parts)
      if (kChunks > 1 && part.is_exchanged) wait_limit = sequence.wait_limit;
    product.sums.store(partial_sums + warp * kRowTile * partial_stride(kRows), lane);
  }

  // Runs all steps of a walk. The walk provides what happens before the product of a pass
  // (load_inputs), the vectors of the product (vector_of), and what happens after the product
  // (compute_and_publish, store).
  template <class Walk>
  __device__ void run(const Walk& walk, bool from_last) const {
    int64_t offset_before = 0;
    for (int n = 0; n < sequence.steps; ++n) {
      const TimeStep at = step(n, from_last, offset_before);
      for (int pass = 0; pass < passes; ++pass) run_pass(walk, at, pass);
      offset_before = at.offset;
    }
  }

  template <class Walk>
  __device__ void run_pass(const Walk& walk, const TimeStep& step, int pass) const {
    typename Walk::Inputs inputs[kUnitsPerThread];
#pragma unroll
    for (int j = 0; j < kUnitsPerThread; ++j)
      inputs[j] = walk.load_inputs(step, unit(step.t, pass, j));
    if (pass_is_live(step.t, pass))
      multiply(pass, [&](int row) { return walk.vector_of(step, row); });
    __syncthreads();
    typename Walk::Result results[kUnitsPerThread];
#pragma unroll
    for (int j = 0; j < kUnitsPerThread; ++j) results[j] = walk.compute_and_publish(inputs[j]);
#pragma unroll
    for (int j = 0; j < kUnitsPerThread; ++j) walk.store(step, inputs[j].at, results[j]);
    __syncthreads();  // before the next pass overwrites the sums
  }

  // The results of the product for row b of the pass and matrix rows r to r + kCount - 1.
  template <int kCount>
  __device__ Sums<kCount> sums(int b, int r) const {
    return sum_partials<kCount>(partial_sums, kRowTile, kRows, b, r);
  }
};

// Calls function(P()) with the kind of arithmetic of a dtype.
template <typename T, class Function>
cudaError_t with_product(bool ffma, const Function& function) {
  if constexpr (std::is_same<T, bfloat16>::value)
    return function(BFloat16Mma());
  else if constexpr (std::is_same<T, float16>::value)
    return function(Float16Mma());
  else {
    static_assert(std::is_same<T, float>::value, "a dtype without a product");
    return ffma ? function(Ffma()) : function(Tf32Mma());
  }
}

template <class Walk>
__global__ void __launch_bounds__(kThreads, 1)
    walk_kernel(typename Walk::Call call, Tiling tiling) {
  if constexpr (kRunsPersistent)
    Walk{call, tiling}.walk();
  else
    __trap();
}

// Launches Walk<P, units, row_tile> with the tile shape that was planned.
template <template <class, int, int> class Walk, class P, class Call>
cudaError_t launch_tile(const Call& call, const Tiling& tiling, cudaStream_t stream) {
  cudaError_t error = cudaErrorInvalidValue;  // remains if the tile shape was not compiled
  const auto launch_if_planned = [&](auto units, auto rows) {
    if constexpr (is_compiled(std::is_same<P, Ffma>::value, units, rows))
      if (tiling.units == units && tiling.row_tile == rows)
        error = launch_cooperative(walk_kernel<Walk<P, units, rows>>,
                                   dim3(static_cast<unsigned>(tiling.blocks())), dim3(kThreads),
                                   static_cast<size_t>(tiling.shared_bytes), stream, call, tiling);
  };
  constexpr std::integral_constant<int, 8> k8{};
  constexpr std::integral_constant<int, 16> k16{};
  constexpr std::integral_constant<int, 32> k32{};
  launch_if_planned(k8, k8), launch_if_planned(k8, k16);
  launch_if_planned(k16, k8), launch_if_planned(k16, k16);
  launch_if_planned(k32, k8), launch_if_planned(k32, k16);
  return error;
}

}  // namespace fastlstm
