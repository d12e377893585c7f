// The stepwise engine's kernels for a GPU, as csrc/stepwise/ calls them.
#pragma once
#include <c10/cuda/CUDAStream.h>

#include <vector>

#include "../core/layer.h"
#include "../stepwise/input.h"
#include "device_sequence.h"
#include "launch.h"

namespace fastlstm {

struct CudaStepKernels : stepwise::AtenProducts {
  static void run(const auto& step) {
    check_cuda(launch_step(step, c10::cuda::getCurrentCUDAStream()), "launch_step");
  }
  template <typename T>
  static Tensor previous_hidden(const Layer& layer, int64_t d, const Tensor& output,
                                const std::vector<WalkStep>&) {
    const DeviceSequence tables(layer, /*sorted=*/false);
    return fastlstm::previous_hidden<T>(layer, tables.sequence, d, output);
  }
};

}  // namespace fastlstm
