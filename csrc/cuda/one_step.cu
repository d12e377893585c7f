// One step in one launch, for calls of T = 1: both products, the biases and the cell equations.
//
// A block has 4 units, which are 16 rows of [W_ih | W_hh], and 8 or up to 64 batch rows. Its warps
// split the columns of both matrices; each loads its part once, straight into mma operands, and
// leaves partial sums in shared memory. Then each thread takes a unit of a row. No block waits for
// another, and no memory is prepared. What bounds it is reading the weights: what a warp has in
// flight must cover the way to memory.
#include "../equations/lstm_step.h"
#include "launch.h"
#include "persistent_launch.h"

namespace fastlstm {
namespace {

constexpr int kUnits = 4, kRows = 4 * kUnits;
// Chunks of its rows that a warp loads at once. The code for a chunk of FFMA is long.
template <class P>
constexpr int kAhead = std::is_same<P, Ffma>::value ? 1 : 4;

template <class P, int kTile>
struct FusedStep {
  using T = typename P::T;
  static constexpr int kColumns = kTile / 8;

  const FusedStepForward<T, float>& step;
  int lane, warp, first_unit, live;  // live: columns of 8 that have rows
  int64_t first_row;
  WarpSums<kRows, kTile> sums;

  // 16 bytes a lane of a chunk: of the matrix rows g and g + 8, and of batch row g of each column
  // of 8, lane 4 g + q.
  __device__ void multiply(const Bits128 (&rows)[2], const Bits128 (&vectors)[kColumns]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const auto weight = [&](int lower, int high) {
        return P::operand(rows[lower].word[2 * half + high]);
      };
      const auto a = P::rows({{weight(0, 0), weight(1, 0), weight(0, 1), weight(1, 1)}});
#pragma unroll
      for (int j = 0; j < kColumns; ++j) {
        if (j >= live) break;
        P::mma(sums.tile[0][j], a,
               P::columns(P::operand(vectors[j].word[2 * half]),
                          P::operand(vectors[j].word[2 * half + 1])));
      }
    }
  }

  // Adds chunks [begin, end) of weights [4H,depth] times vectors [rows,depth].
  __device__ void add(const T* weights, const T* vectors, int depth, bool recurrent, int begin,
                      int end) {
    LanePart<T> rows[2], columns[kColumns];
#pragma unroll
    for (int lower = 0; lower < 2; ++lower) {
      const int r = lane / 4 + 8 * lower;  // the order of a unit's gates in `partials`
      const int64_t row = r % 4 * step.hidden_size + first_unit + r / 4;
      rows[lower] = lane_part<T>({weights + row * depth}, end, depth, lane);
    }
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
      const int64_t row = first_row + 8 * j + lane / 4;
      const bool is_zero = row >= step.rows || (recurrent && is_reset(step, row));
      columns[j] = lane_part<T>({is_zero ? nullptr : vectors + row * depth}, end, depth, lane);
    }
    for (int chunk = begin; chunk < end; chunk += kAhead<P>) {
      LoadedChunks<T, kAhead<P>, 2> matrix;
      matrix.load(rows, chunk);
#pragma unroll
      for (int a = 0; a < kAhead<P>; ++a) {
        if (chunk + a >= end) break;
        LoadedChunks<T, 1, kColumns> state;
        state.load(columns, chunk + a);
        multiply(matrix.words[a], state.words[0]);
      }
    }
  }

  __device__ void run() {
    const int depth_x = static_cast<int>(step.input_size);
    const int depth_h = static_cast<int>(step.hidden_size);
    const int chunks_x = (depth_x + kPerChunk<T> - 1) / kPerChunk<T>;
    const int chunks = chunks_x + (depth_h + kPerChunk<T> - 1) / kPerChunk<T>;
    const int begin = warp * chunks / kWarps, end = (warp + 1) * chunks / kWarps;
    add(step.w_ih, step.input, depth_x, false, begin, min(end, chunks_x));
    add(step.w_hh, step.h_seen, depth_h, true, begin > chunks_x ? begin - chunks_x : 0,
        end - chunks_x);
    float* const partials = reinterpret_cast<float*>(shared_memory());
    sums.store(partials + warp * kTile * partial_stride(kRows), lane);
    __syncthreads();
    for (int i = 32 * warp + lane; i < kTile * kUnits; i += kThreads) {
      const int row = i / kUnits, unit = i % kUnits;
      if (first_row + row >= step.rows) continue;
      const Sums<4> sum = sum_partials<4>(partials, kTile, kRows, row, 4 * unit);
      one_step_unit(step, first_row + row, first_unit + unit, bits_as<Gates<float>>(sum));
    }
  }
};

template <class P, int kTile>
__global__ void __launch_bounds__(kThreads, 1)
    fused_step_kernel(FusedStepForward<typename P::T, float> step) {
  if constexpr (kRunsPersistent) {
    const int thread = threadIdx.x;
    const int64_t first_row = int64_t(blockIdx.y) * kTile;
    const int rows = static_cast<int>(min(step.rows - first_row, int64_t(kTile)));
    FusedStep<P, kTile>{step,           thread % 32, thread / 32, int(blockIdx.x) * kUnits,
                        (rows + 7) / 8, first_row,   {}}
        .run();
  } else {
    __trap();
  }
}

template <class P, int kTile>
cudaError_t launch_tile(const FusedStepForward<typename P::T, float>& step, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(step.hidden_size / kUnits),
                  static_cast<unsigned>(divide_up(step.rows, kTile)));
  return launch(fused_step_kernel<P, kTile>, grid, dim3(kThreads),
                sizeof(float) * kWarps * kTile * partial_stride(kRows), stream, step);
}

bool is_aligned(const void* pointer, int64_t row_bytes) {
  return reinterpret_cast<uintptr_t>(pointer) % 16 == 0 && row_bytes % 16 == 0;
}

}  // namespace

template <typename T>
cudaError_t launch_step(const FusedStepForward<T, float>& step, bool allow_tf32,
                        cudaStream_t stream) {
  const int64_t x_bytes = step.input_size * sizeof(T), h_bytes = step.hidden_size * sizeof(T);
  if (!is_aligned(step.input, x_bytes) || !is_aligned(step.w_ih, x_bytes) ||
      !is_aligned(step.h_seen, h_bytes) || !is_aligned(step.w_hh, h_bytes))
    return cudaErrorInvalidValue;
  if (step.rows == 0 || step.hidden_size == 0) return cudaSuccess;
  return with_product<T>(!allow_tf32, [&](auto p) {
    using P = decltype(p);
    return step.rows <= 8 ? launch_tile<P, 8>(step, stream) : launch_tile<P, 64>(step, stream);
  });
}

template cudaError_t launch_step(const FusedStepForward<float, float>&, bool, cudaStream_t);
template cudaError_t launch_step(const FusedStepForward<bfloat16, float>&, bool, cudaStream_t);
template cudaError_t launch_step(const FusedStepForward<float16, float>&, bool, cudaStream_t);

}  // namespace fastlstm
