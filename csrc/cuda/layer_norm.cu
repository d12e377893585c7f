// The stepwise engine with layer normalization: a block has a whole row of a step, and its threads
// share the row's sums.
#include "../dtype_list.h"
#include "../equations/layer_norm_step.h"
#include "device.h"
#include "launch.h"

namespace fastlstm {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMaxGrid = 65535;

// The threads of a block. Sums are added in a fixed order.
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
__global__ void __launch_bounds__(kThreads) forward_kernel(NormForward<T, A> step) {
  const Block<A> block{reinterpret_cast<A*>(shared_memory()), threadIdx.x};
  for (int64_t row = blockIdx.x; row < step.rows; row += gridDim.x)
    forward_normed_row(step, row, is_reset(step, row), step.zoneout.h, block);
}

template <typename T, typename A>
__global__ void __launch_bounds__(kThreads) backward_kernel(NormBackward<T, A> step) {
  const Block<A> block{reinterpret_cast<A*>(shared_memory()), threadIdx.x};
  for (int64_t row = blockIdx.x; row < step.rows; row += gridDim.x)
    backward_normed_row(step, row, is_reset(step, row), step.zoneout.h, block);
}

template <typename A, typename S>
cudaError_t launch_rows(void (*kernel)(S), const S& step, cudaStream_t stream) {
  if (step.rows == 0 || step.hidden_size == 0) return cudaSuccess;
  const dim3 grid(static_cast<unsigned>(step.rows < kMaxGrid ? step.rows : kMaxGrid));
  return launch(kernel, grid, dim3(kThreads), kThreads * sizeof(A), stream, step);
}

}  // namespace

template <typename T, typename A>
cudaError_t launch_step(const NormForward<T, A>& step, cudaStream_t stream) {
  return launch_rows<A>(forward_kernel<T, A>, step, stream);
}

template <typename T, typename A>
cudaError_t launch_step(const NormBackward<T, A>& step, cudaStream_t stream) {
  return launch_rows<A>(backward_kernel<T, A>, step, stream);
}

#define FASTLSTM_INSTANTIATE(T, A, name)                                    \
  template cudaError_t launch_step(const NormForward<T, A>&, cudaStream_t); \
  template cudaError_t launch_step(const NormBackward<T, A>&, cudaStream_t);
FASTLSTM_FOR_EACH_DTYPE(FASTLSTM_INSTANTIATE)

}  // namespace fastlstm
