// The stepwise engine's kernels for a GPU, as csrc/stepwise/ calls them.
#pragma once
#include <c10/cuda/CUDAStream.h>

#include <vector>

#include "../equations/layer_norm_step.h"
#include "../op/layer.h"
#include "device_sequence.h"
#include "launch.h"

namespace fastlstm {

struct CudaKernels {
  template <typename T, typename A>
  static void forward(const StepForward<T, A>& step) {
    check_cuda(launch_step_forward(step, c10::cuda::getCurrentCUDAStream()), "launch_step_forward");
  }
  template <typename T, typename A>
  static void backward(const StepBackward<T, A>& step) {
    check_cuda(launch_step_backward(step, c10::cuda::getCurrentCUDAStream()),
               "launch_step_backward");
  }
  template <typename T>
  static Tensor previous_hidden(const Layer& layer, int64_t d, const Tensor& output,
                                const std::vector<WalkStep>&) {
    const DeviceSequence tables(layer, /*sorted=*/false);
    return fastlstm::previous_hidden<T>(layer, tables.sequence, d, output);
  }
  template <typename T, typename A>
  static void forward_normed(const NormForward<T, A>& step) {
    check_cuda(launch_step_forward_normed(step, c10::cuda::getCurrentCUDAStream()),
               "launch_step_forward_normed");
  }
  template <typename T, typename A>
  static void backward_normed(const NormBackward<T, A>& step) {
    check_cuda(launch_step_backward_normed(step, c10::cuda::getCurrentCUDAStream()),
               "launch_step_backward_normed");
  }
};

}  // namespace fastlstm
