// gpu_tests --list prints the names of the cases; gpu_tests NAME... runs these cases on the GPU.
// The GPU can access all memory that the cases allocate, and the host waits for the end of every
// launch.
#include <cstdlib>
#include <new>

#include "harness.h"
#include "runtime.h"

// Allocates managed memory, which host and GPU share, from large pieces that are never freed.
// Without a GPU the memory is host memory, so that --list works.
void* operator new(size_t bytes) {
  constexpr size_t kPiece = size_t{256} << 20, kAlignment = 256;
  static char* next = nullptr;
  static size_t left = 0;
  bytes = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  if (bytes > left) {
    left = bytes > kPiece ? bytes : kPiece;
    void* piece = nullptr;
    if (cudaMallocManaged(&piece, left) != cudaSuccess) piece = std::malloc(left);
    if (!piece) throw std::bad_alloc();
    next = static_cast<char*>(piece);
  }
  left -= bytes, next += bytes;
  return next - bytes;
}
void operator delete(void*) noexcept {}
void operator delete(void*, size_t) noexcept {}

extern "C" {
cudaError_t __real_cudaLaunchKernel(const void*, dim3, dim3, void**, size_t, cudaStream_t);
cudaError_t __real_cudaLaunchCooperativeKernel(const void*, dim3, dim3, void**, size_t,
                                               cudaStream_t);
cudaError_t __wrap_cudaLaunchKernel(const void* kernel, dim3 grid, dim3 block, void** arguments,
                                    size_t shared_bytes, cudaStream_t stream) {
  const auto error = __real_cudaLaunchKernel(kernel, grid, block, arguments, shared_bytes, stream);
  return error == cudaSuccess ? cudaDeviceSynchronize() : error;
}
cudaError_t __wrap_cudaLaunchCooperativeKernel(const void* kernel, dim3 grid, dim3 block,
                                               void** arguments, size_t shared_bytes,
                                               cudaStream_t stream) {
  const auto error =
      __real_cudaLaunchCooperativeKernel(kernel, grid, block, arguments, shared_bytes, stream);
  return error == cudaSuccess ? cudaDeviceSynchronize() : error;
}
}

int main(int argc, char** argv) {
  int status = 0;
  for (int i = 1; i < argc; ++i) {
    status |= testing::run_cases({argv[i]});
    const cudaError_t error = std::string(argv[i]) == "--list" ? cudaSuccess : cudaFree(nullptr);
    if (error != cudaSuccess) {  // after a device error all launches fail
      std::printf("FAILED the device: %s\n", cudaGetErrorString(error));
      return 1;
    }
  }
  return status;
}
