// Small kernels around a walk: tables for packed data, and h_{t-1} of every flat row
// for the gradient of W_hh.
#include <type_traits>

#include "../dtype_list.h"
#include "device.h"
#include "persistent.h"

namespace fastlstm {
namespace {

constexpr int kMaxGridY = 1024;  // fills any GPU; CUDA's own limit is 65535

// As many values as the parameters of one launch may hold: host numbers reach the device without a
// copy that would have to wait for the stream, and a CUDA graph keeps them.
constexpr int kPiece = 496;
struct Piece {
  int64_t value[kPiece];
};
static_assert(sizeof(Piece) + 16 <= 4096, "what CUDA allows on every GPU");

__global__ void upload_kernel(Piece piece, int count, int64_t* out) {
  for (int i = threadIdx.x; i < count; i += blockDim.x) out[i] = piece.value[i];
}

template <typename T>
__global__ void __launch_bounds__(kThreads) previous_hidden_kernel(PreviousHidden<T> call) {
  using A = std::conditional_t<std::is_same<T, double>::value, double, float>;
  const Sequence& sequence = call.sequence;
  const int hidden = sequence.hidden_size;
  const auto flat_row = [&](int t, int64_t row) {
    return (sequence.offsets ? sequence.offsets[t] : int64_t(t) * sequence.batch) + row;
  };
  for (int t = blockIdx.y; t < sequence.steps; t += gridDim.y) {
    for (int64_t row = int64_t(blockIdx.x) * blockDim.y + threadIdx.y; row < sequence.batch;
         row += int64_t(gridDim.x) * blockDim.y) {
      const int length = live_steps(sequence, row);
      const bool live = t < length;
      if (!live && sequence.offsets) continue;  // packed data has no padding
      const bool reset = sequence.reset && sequence.reset[flat_row(t, row)];
      const T* from = nullptr;
      if (live && !reset)
        from = t == (call.reverse ? length - 1 : 0)
                   ? call.h_0 + row * hidden
                   : call.output + flat_row(call.reverse ? t + 1 : t - 1, row) * call.output_stride;
      T* to = call.h_prev + flat_row(t, row) * hidden;
      for (int unit = threadIdx.x; unit < hidden; unit += blockDim.x) {
        T h = from ? from[unit] : T(0.0f);
        if (call.h_mask) h = T(A(h) * A(call.h_mask[row * hidden + unit]));
        to[unit] = h;
      }
    }
  }
}

}  // namespace

cudaError_t launch_upload(const int64_t* host, int64_t count, int64_t* device,
                          cudaStream_t stream) {
  for (int64_t done = 0; done < count; done += kPiece) {
    Piece piece;
    const int size = static_cast<int>(count - done < kPiece ? count - done : kPiece);
    std::memcpy(piece.value, host + done, size * sizeof(int64_t));
    const cudaError_t error =
        launch(upload_kernel, dim3(1), dim3(kThreads), 0, stream, piece, size, device + done);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

template <typename T>
cudaError_t launch_previous_hidden(const PreviousHidden<T>& call, cudaStream_t stream) {
  const Sequence& sequence = call.sequence;
  if (sequence.batch == 0 || sequence.steps == 0) return cudaSuccess;
  const dim3 block(64, kThreads / 64);
  const int64_t across = divide_up(sequence.batch, block.y);
  const dim3 grid(static_cast<unsigned>(std::min<int64_t>(across, 65535)),
                  static_cast<unsigned>(std::min(sequence.steps, kMaxGridY)));
  return launch(previous_hidden_kernel<T>, grid, block, 0, stream, call);
}

#define FASTLSTM_INSTANTIATE(T, A, name) \
  template cudaError_t launch_previous_hidden(const PreviousHidden<T>&, cudaStream_t);
FASTLSTM_FOR_EACH_DTYPE(FASTLSTM_INSTANTIATE)

}  // namespace fastlstm
