// The op for the CUDA dispatch key: checks the call, chooses the engine (choice.h), and runs it.
// Only this file and the headers that it includes use both ATen and CUDA's runtime.
#include <c10/cuda/CUDAGuard.h>
#include <torch/library.h>

#include "persistent_layer.h"

namespace fastlstm {
namespace {

struct CudaStepKernels {
  static void run(const auto& step) {
    check_cuda(launch_step(step, c10::cuda::getCurrentCUDAStream()), "launch_step");
  }
};

// Returns function(T(), A()). T is the C++ type of `dtype`, A the type of its cell state.
auto dispatch(at::ScalarType dtype, const auto& function) {
#define FASTLSTM_CASE(T, A, name) \
  if (dtype == at::k##name) return function(T(), A());
  FASTLSTM_FOR_EACH_DTYPE(FASTLSTM_CASE)
#undef FASTLSTM_CASE
  TORCH_INTERNAL_ASSERT(false, "check_layer lets no ", dtype, " pass");
}

ForwardResult lstm_cuda(LstmCall call, const ForwardOptions& options) {
  const LayerCall layer = check_layer(std::move(call));
  check_values(layer);
  const c10::cuda::CUDAGuard device(layer.input.device());
  const auto tiling = plan_persistent(options.engine, layer, /*backward=*/false);
  return dispatch(layer.input.scalar_type(), [&](auto t, auto a) {
    using T = decltype(t);
    if constexpr (!std::is_same_v<T, double>)
      if (tiling) return persistent_forward<T>(layer, *tiling, options);
    return stepwise_forward<T, decltype(a), CudaStepKernels>(layer, options);
  });
}

BackwardResult lstm_backward_cuda(LstmCall call, const BackwardArguments& arguments) {
  const LayerCall layer = check_layer(std::move(call));
  check_values(layer);
  check_backward(layer, arguments);
  const c10::cuda::CUDAGuard device(layer.input.device());
  const auto tiling = plan_persistent(arguments.engine, layer, /*backward=*/true);
  return dispatch(layer.input.scalar_type(), [&](auto t, auto a) {
    using T = decltype(t);
    if constexpr (!std::is_same_v<T, double>)
      if (tiling) return persistent_backward<T>(layer, *tiling, arguments);
    return stepwise_backward<T, decltype(a), CudaStepKernels>(layer, arguments);
  });
}

// Returns sm_count and capability of a CudaDevice, and an empty string, for
// fastlstm._build.gpu_properties. If CUDA fails, returns 0, 0 and the error message.
std::tuple<int64_t, int64_t, std::string> cuda_device_of(int64_t index) {
  try {
    const c10::cuda::CUDAGuard guard(static_cast<c10::DeviceIndex>(index));
    const CudaDevice device = cuda_device();
    return {device.sm_count, device.capability, ""};
  } catch (const c10::Error& error) {
    return {0, 0, error.what_without_backtrace()};
  }
}

}  // namespace
}  // namespace fastlstm

TORCH_LIBRARY_IMPL(fastlstm, CUDA, m) {
  m.impl("lstm", fastlstm::op<fastlstm::lstm_cuda>);
  m.impl("lstm_backward", fastlstm::op<fastlstm::lstm_backward_cuda>);
}

TORCH_LIBRARY_FRAGMENT(fastlstm, m) { m.def("cuda_device", &fastlstm::cuda_device_of); }
