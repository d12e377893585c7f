// Stepwise engine: one launch per time step, after the GEMM of that step. One thread owns a unit of
// a row and calls the step functions that the CPU calls too. What limits it is the launch itself:
// a step moves at most a few megabytes. With layer normalization a block has a whole row of a step,
// whose sums its threads share.
#include <algorithm>

#include "../dtype_list.h"
#include "../equations/layer_norm_step.h"
#include "../parts.h"
#include "device.h"
#include "launch.h"

namespace fastlstm {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMaxGridY = 1024;  // fills any GPU; CUDA's own limit is 65535
constexpr int64_t kMaxRowGrid = 65535;

// function(row, unit) for the unit of a thread. Units along x, rows along y; rows beyond the grid
// are reached by striding.
template <class Function>
__device__ void for_each_row(const Step& step, const Function& function) {
  const int64_t unit = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (unit >= step.hidden_size) return;
  const int64_t rows_per_grid = int64_t(gridDim.y) * blockDim.y;
  for (int64_t row = int64_t(blockIdx.y) * blockDim.y + threadIdx.y; row < step.rows;
       row += rows_per_grid)
    function(row, unit);
}

template <typename T, typename A, bool zoned>
__global__ void __launch_bounds__(kThreads) forward_kernel(StepForward<T, A> step) {
  for_each_row(step, [&](int64_t row, int64_t unit) {
    if (is_live(step, row))
      forward_unit(step, row, unit, is_reset(step, row), zoned);
    else
      forward_dead_unit(step, row, unit);
  });
}

template <typename T, typename A, bool zoned>
__global__ void __launch_bounds__(kThreads) backward_kernel(StepBackward<T, A> step) {
  for_each_row(step, [&](int64_t row, int64_t unit) {
    if (is_live(step, row))
      backward_unit(step, row, unit, cells_before(step, row), is_reset(step, row), zoned);
    else
      backward_dead_unit(step, row, unit);
  });
}

template <typename T, typename A>
__global__ void __launch_bounds__(kThreads) one_step_kernel(OneStepForward<T, A> step) {
  const int64_t hidden = step.hidden_size;
  for_each_row(step, [&](int64_t row, int64_t unit) {
    auto pre = load_gates<T, A>(step.x_gates + row * 4 * hidden, unit, hidden);
    if (!is_reset(step, row)) add_gates(pre, step.h_gates + row * 4 * hidden, unit, hidden);
    one_step_unit(step, row, unit, pre);
  });
}

template <typename S>
cudaError_t launch_kernel(void (*kernel)(S), const S& step, cudaStream_t stream) {
  if (step.rows == 0 || step.hidden_size == 0) return cudaSuccess;
  int64_t width = 32;  // lanes along the units: no wider than they are
  while (width < kThreads && width < step.hidden_size) width *= 2;
  const int64_t height = kThreads / width;
  const int64_t grid_y = std::min(divide_up(step.rows, height), kMaxGridY);
  const dim3 grid(static_cast<unsigned>(divide_up(step.hidden_size, width)),
                  static_cast<unsigned>(grid_y));
  const dim3 block(static_cast<unsigned>(width), static_cast<unsigned>(height));
  return launch(kernel, grid, block, 0, stream, step);
}

// The threads of a block, which has a whole row. Sums are added in a fixed order.
template <typename A>
struct Block {
  A* partial;  // [kThreads] in shared memory
  int64_t thread;

  template <typename F>
  FASTLSTM_INLINE void each(int64_t n, const F& f) const {
    for (int64_t k = thread; k < n; k += kThreads) f(k);
  }
  template <typename F>
  FASTLSTM_INLINE A total(int64_t n, const F& f) const {
    A sum(0);
    barrier();  // what f reads may be another thread's; and all have read the last total
    for (int64_t k = thread; k < n; k += kThreads) sum += f(k);
    partial[thread] = sum;
    barrier();
    for (int half = kThreads / 2; half > 0; half /= 2) {
      if (thread < half) partial[thread] += partial[thread + half];
      barrier();
    }
    return partial[0];
  }
  FASTLSTM_INLINE static void barrier() {
#if defined(__CUDA_ARCH__) || defined(FASTLSTM_EMULATOR)
    __syncthreads();
#endif
  }
};

template <typename T, typename A>
__global__ void __launch_bounds__(kThreads) forward_rows_kernel(NormForward<T, A> step) {
  const Block<A> block{reinterpret_cast<A*>(shared_memory()), threadIdx.x};
  for (int64_t row = blockIdx.x; row < step.rows; row += gridDim.x)
    forward_normed_row(step, row, is_reset(step, row), step.zoneout.h, block);
}

template <typename T, typename A>
__global__ void __launch_bounds__(kThreads) backward_rows_kernel(NormBackward<T, A> step) {
  const Block<A> block{reinterpret_cast<A*>(shared_memory()), threadIdx.x};
  for (int64_t row = blockIdx.x; row < step.rows; row += gridDim.x)
    backward_normed_row(step, row, is_reset(step, row), step.zoneout.h, block);
}

template <typename A, typename S>
cudaError_t launch_rows(void (*kernel)(S), const S& step, cudaStream_t stream) {
  if (step.rows == 0 || step.hidden_size == 0) return cudaSuccess;
  const dim3 grid(static_cast<unsigned>(std::min(step.rows, kMaxRowGrid)));
  return launch(kernel, grid, dim3(kThreads), kThreads * sizeof(A), stream, step);
}

}  // namespace

template <typename T, typename A>
cudaError_t launch_step(const StepForward<T, A>& step, cudaStream_t stream) {
  return launch_kernel(step.zoneout.h ? forward_kernel<T, A, true> : forward_kernel<T, A, false>,
                       step, stream);
}

template <typename T, typename A>
cudaError_t launch_step(const StepBackward<T, A>& step, cudaStream_t stream) {
  return launch_kernel(step.zoneout.h ? backward_kernel<T, A, true> : backward_kernel<T, A, false>,
                       step, stream);
}

template <typename T, typename A>
cudaError_t launch_step(const OneStepForward<T, A>& step, cudaStream_t stream) {
  return launch_kernel(one_step_kernel<T, A>, step, stream);
}

template <typename T, typename A>
cudaError_t launch_step(const NormForward<T, A>& step, cudaStream_t stream) {
  return launch_rows<A>(forward_rows_kernel<T, A>, step, stream);
}

template <typename T, typename A>
cudaError_t launch_step(const NormBackward<T, A>& step, cudaStream_t stream) {
  return launch_rows<A>(backward_rows_kernel<T, A>, step, stream);
}

cudaError_t compiled_capability(int* capability) {
  cudaFuncAttributes attributes{};
  const auto* const kernel = reinterpret_cast<const void*>(forward_kernel<float, float, false>);
  const cudaError_t error = cleared(cudaFuncGetAttributes(&attributes, kernel));
  *capability = attributes.ptxVersion;
  return error;
}

#define FASTLSTM_INSTANTIATE(T, A, name)                                       \
  template cudaError_t launch_step(const StepForward<T, A>&, cudaStream_t);    \
  template cudaError_t launch_step(const OneStepForward<T, A>&, cudaStream_t); \
  template cudaError_t launch_step(const StepBackward<T, A>&, cudaStream_t);   \
  template cudaError_t launch_step(const NormForward<T, A>&, cudaStream_t);    \
  template cudaError_t launch_step(const NormBackward<T, A>&, cudaStream_t);
FASTLSTM_FOR_EACH_DTYPE(FASTLSTM_INSTANTIATE)

}  // namespace fastlstm
