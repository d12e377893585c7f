// Replaces the header of a CUDA build of torch, with the emulator's runtime.
#pragma once
#include "runtime.h"

namespace c10::cuda {
inline cudaStream_t getCurrentCUDAStream() { return runtime::thread().stream; }
}  // namespace c10::cuda
