// Replaces the header of a CUDA build of torch, with the emulator's runtime.
#pragma once
#include <c10/core/Device.h>

#include "runtime.h"

namespace c10::cuda {
inline DeviceIndex current_device() {
  int device = 0;
  cudaGetDevice(&device);
  return static_cast<DeviceIndex>(device);
}
}  // namespace c10::cuda
