// Stands in for the headers of a CUDA build of torch: CPU tensors, the emulator, and a small
// device.
#pragma once
#include "simt.h"

enum cudaDeviceAttr {
  cudaDevAttrComputeCapabilityMajor,
  cudaDevAttrComputeCapabilityMinor,
  cudaDevAttrMultiProcessorCount,
  cudaDevAttrMaxSharedMemoryPerBlockOptin,
  cudaDevAttrCooperativeLaunch
};

inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int /*device*/) {
  const int values[] = {9, 0, 24, 227 * 1024, 1};
  *value = values[attribute];
  return cudaSuccess;
}

inline cudaError_t cudaMemsetAsync(void* address, int byte, size_t count, cudaStream_t) {
  std::memset(address, byte, count);
  return cudaSuccess;
}

inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess ? "no error" : "an error of the emulator";
}

namespace c10::cuda {
inline cudaStream_t getCurrentCUDAStream() { return nullptr; }
}  // namespace c10::cuda
