// Copies the tables of packed data to the device, up to 510 values in a launch of one block. The
// values are parameters of the kernel, so the host does not wait, and a CUDA graph keeps them. The
// time of the launches bounds the copy.
#include "device.h"
#include "persistent.h"

namespace fastlstm {
namespace {

// Every GPU takes 4096 bytes of parameters. The two other parameters take at most 16.
constexpr int kMaxValues = (4096 - 16) / sizeof(int64_t);
struct Values {
  int64_t value[kMaxValues];
};

__global__ void upload_kernel(Values values, int count, int64_t* out) {
  for (int i = threadIdx.x; i < count; i += blockDim.x) out[i] = values.value[i];
}

}  // namespace

cudaError_t launch_upload(const int64_t* host, int64_t count, int64_t* device,
                          cudaStream_t stream) {
  for (int64_t done = 0; done < count; done += kMaxValues) {
    Values values;
    const int size = static_cast<int>(std::min<int64_t>(count - done, kMaxValues));
    std::memcpy(values.value, host + done, size * sizeof(int64_t));
    const cudaError_t error =
        launch(upload_kernel, dim3(1), dim3(kThreads), 0, stream, values, size, device + done);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace fastlstm
