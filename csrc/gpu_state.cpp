// What the libraries of a wheel share about GPUs. It knows neither torch nor CUDA.
#include "cuda/request.h"

fastlstm::GpuState& fastlstm::gpu_state() {
  static GpuState state;
  return state;
}
