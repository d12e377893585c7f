// The kernels of the stepwise engine, which call step_row() (equations/), as the CPU does. A step
// has one launch, or two with a projection. A thread computes one unit of a row. With layer
// normalization a block computes a whole row, since the sums run over the row. The time of a launch
// bounds a step, which moves few megabytes at most.
#include <algorithm>

#include "../dtype_list.h"
#include "../parts.h"
#include "device.h"
#include "launch.h"

namespace fastlstm {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;
// The limits of the grid, beyond which a thread computes several rows. 1024 fill any GPU.
constexpr int64_t kMaxGridY = 1024, kMaxRowGrid = 65535;

// The ThreadGroup (lstm_step.h) of one thread that computes one unit.
struct OneUnit {
  int64_t unit;
  template <typename F>
  FASTLSTM_INLINE void each(int64_t, const F& f) const {
    f(unit);
  }
};

// Units lie along x of the grid, rows along y.
template <template <typename, typename> class S, typename T, typename A>
__global__ void __launch_bounds__(kThreads) units_kernel(S<T, A> step) {
  const int64_t unit = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (unit >= step.hidden_size) return;
  const int64_t rows_per_grid = int64_t(gridDim.y) * blockDim.y;
#pragma unroll 1  // almost always one round; unrolled code would divide by rows_per_grid
  for (int64_t row = int64_t(blockIdx.y) * blockDim.y + threadIdx.y; row < step.rows;
       row += rows_per_grid)
    step_row(step, row, is_reset(step, row), OneUnit{unit});
}

// The ThreadGroup of a block that computes a whole row. Sums have a fixed order.
template <typename A>
struct RowBlock {
  A* warp_sums;  // [kWarps] in shared memory
  int64_t thread;

  template <typename F>
  FASTLSTM_INLINE void each(int64_t n, const F& f) const {
    for (int64_t k = thread; k < n; k += kThreads) f(k);
  }
  template <typename F>
  FASTLSTM_INLINE A total(int64_t n, const F& f) const {
    A sum(0);
#if defined(__CUDA_ARCH__) || defined(FASTLSTM_EMULATOR)
    __syncthreads();  // all threads have written what f reads, and have read the last warp_sums
    for (int64_t k = thread; k < n; k += kThreads) sum += f(k);
    for (int lanes = 16; lanes > 0; lanes /= 2) sum += shuffle_xor(sum, lanes);
    if (thread % 32 == 0) warp_sums[thread / 32] = sum;
    __syncthreads();
    sum = A(0);
    for (int warp = 0; warp < kWarps; ++warp) sum += warp_sums[warp];
#endif
    return sum;
  }
};

template <template <typename, typename> class S, typename T, typename A>
__global__ void __launch_bounds__(kThreads) rows_kernel(S<T, A> step) {
  const RowBlock<A> block{reinterpret_cast<A*>(shared_memory()), threadIdx.x};
  for (int64_t row = blockIdx.x; row < step.rows; row += gridDim.x)
    step_row(step, row, is_reset(step, row), block);
}

}  // namespace

template <template <typename, typename> class S, typename T, typename A>
cudaError_t launch_step(const S<T, A>& step, cudaStream_t stream) {
  if (step.rows == 0 || step.hidden_size == 0) return cudaSuccess;
  const auto extent = [](int64_t x, int64_t y) {
    return dim3(static_cast<unsigned>(x), static_cast<unsigned>(y));
  };
  if constexpr (S<T, A>::kWholeRows) {
    const dim3 grid = extent(std::min(step.rows, kMaxRowGrid), 1);
    return launch(rows_kernel<S, T, A>, grid, dim3(kThreads), kWarps * sizeof(A), stream, step);
  } else {
    int64_t width = 32;  // the threads of a block along the units: at least a warp
    while (width < kThreads && width < step.hidden_size) width *= 2;
    const int64_t height = kThreads / width;
    const dim3 grid = extent(divide_up(step.hidden_size, width),
                             std::min(divide_up(step.rows, height), kMaxGridY));
    return launch(units_kernel<S, T, A>, grid, extent(width, height), 0, stream, step);
  }
}

cudaError_t compiled_capability(int* capability) {
  cudaFuncAttributes attributes{};
  const auto* const kernel = reinterpret_cast<const void*>(units_kernel<ForwardStep, float, float>);
  const cudaError_t error = cleared(cudaFuncGetAttributes(&attributes, kernel));
  if (error == cudaSuccess) *capability = attributes.ptxVersion;
  return error;
}

#define FASTLSTM_INSTANTIATE(T, A, name)                                               \
  template cudaError_t launch_step(const ForwardStep<T, A>&, cudaStream_t);            \
  template cudaError_t launch_step(const BackwardStep<T, A>&, cudaStream_t);           \
  template cudaError_t launch_step(const ProjectionForwardStep<T, A>&, cudaStream_t);  \
  template cudaError_t launch_step(const ProjectionBackwardStep<T, A>&, cudaStream_t); \
  template cudaError_t launch_step(const NormForwardStep<T, A>&, cudaStream_t);        \
  template cudaError_t launch_step(const NormBackwardStep<T, A>&, cudaStream_t);
FASTLSTM_FOR_EACH_DTYPE(FASTLSTM_INSTANTIATE)

}  // namespace fastlstm
