// Stepwise engine: one launch per time step, after the GEMM of that step. One thread owns a unit of
// a row and calls the step functions that the CPU calls too. What limits it is the launch itself:
// a step moves at most a few megabytes.
#include <algorithm>

#include "../dtype_list.h"
#include "../equations/lstm_step.h"
#include "../parts.h"
#include "device.h"
#include "launch.h"

namespace fastlstm {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMaxGridY = 1024;  // fills any GPU; CUDA's own limit is 65535

// Units along x, rows along y; rows beyond the grid are reached by striding.
template <typename T, typename A, bool zoned>
__global__ void __launch_bounds__(kThreads) forward_kernel(StepForward<T, A> step) {
  const int64_t unit = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (unit >= step.hidden_size) return;
  const int64_t rows_per_grid = int64_t(gridDim.y) * blockDim.y;
  for (int64_t row = int64_t(blockIdx.y) * blockDim.y + threadIdx.y; row < step.rows;
       row += rows_per_grid) {
    if (is_live(step, row))
      forward_unit(step, row, unit, is_reset(step, row), zoned);
    else
      forward_dead_unit(step, row, unit);
  }
}

template <typename T, typename A, bool zoned>
__global__ void __launch_bounds__(kThreads) backward_kernel(StepBackward<T, A> step) {
  const int64_t unit = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (unit >= step.hidden_size) return;
  const int64_t rows_per_grid = int64_t(gridDim.y) * blockDim.y;
  for (int64_t row = int64_t(blockIdx.y) * blockDim.y + threadIdx.y; row < step.rows;
       row += rows_per_grid) {
    if (is_live(step, row))
      backward_unit(step, row, unit, cells_before(step, row), is_reset(step, row), zoned);
    else
      backward_dead_unit(step, row, unit);
  }
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

#define FASTLSTM_INSTANTIATE(T, A, name)                                    \
  template cudaError_t launch_step(const StepForward<T, A>&, cudaStream_t); \
  template cudaError_t launch_step(const StepBackward<T, A>&, cudaStream_t);
FASTLSTM_FOR_EACH_DTYPE(FASTLSTM_INSTANTIATE)
#undef FASTLSTM_INSTANTIATE

}  // namespace fastlstm
