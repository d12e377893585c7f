// Copies the tables of packed data to the device.
#include "device.h"
#include "persistent.h"

namespace fastlstm {
namespace {

// The number of values that one launch copies. They are parameters of the kernel, so no copy has to
// wait for the stream, and a CUDA graph keeps them. CUDA limits parameters to 4096 bytes on every
// GPU.
constexpr int kMaxValues = 496;
struct Values {
  int64_t value[kMaxValues];
};
static_assert(sizeof(Values) + 16 <= 4096, "what CUDA allows on every GPU");

__global__ void upload_kernel(Values values, int count, int64_t* out) {
  for (int i = threadIdx.x; i < count; i += blockDim.x) out[i] = values.value[i];
}

}  // namespace

cudaError_t launch_upload(const int64_t* host, int64_t count, int64_t* device,
                          cudaStream_t stream) {
  for (int64_t done = 0; done < count; done += kMaxValues) {
    Values values;
    const int size = static_cast<int>(count - done < kMaxValues ? count - done : kMaxValues);
    std::memcpy(values.value, host + done, size * sizeof(int64_t));
    const cudaError_t error =
        launch(upload_kernel, dim3(1), dim3(kThreads), 0, stream, values, size, device + done);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace fastlstm
