// CUDA key: checks the call, asks for an engine (choice.h), runs it. This file and the headers it
// includes are the only ones that know both ATen and CUDA, of whose libraries they need the runtime
// alone.
#include <c10/cuda/CUDAGuard.h>
#include <torch/library.h>

#include "choice.h"
#include "gemm_precision.h"
#include "persistent_layer.h"
#include "stepwise_kernels.h"

namespace fastlstm {
namespace {

template <typename T, typename A>
ForwardResult forward(const Layer& layer, bool save_cells, bool save_gates,
                      c10::string_view engine) {
  const PlannedCall planned = plan_call(engine, layer, /*backward=*/false);
  Tensor gates;
  if constexpr (!std::is_same_v<T, double>)
    if (planned.plan.persistent)
      if (auto done = persistent_forward<T>(layer, planned, save_cells, save_gates, gates))
        return *done;
  return stepwise_forward<T, A, CudaKernels>(layer, save_cells, save_gates, gates,
                                             planned.plan.tiling.directions);
}

template <typename T, typename A>
BackwardResult backward(const Layer& layer, Saved saved, const OutputGrads& grads,
                        bool input_needs_grad, bool state_needs_grad, c10::string_view engine,
                        bool per_row) {
  const PlannedCall planned = plan_call(engine, layer, /*backward=*/true);
  if constexpr (!std::is_same_v<T, double>)
    if (planned.plan.persistent)
      if (auto done = persistent_backward<T>(layer, planned, saved, grads, input_needs_grad,
                                             state_needs_grad, per_row))
        return *done;
  return stepwise_backward<T, A, CudaKernels>(layer, saved, grads, input_needs_grad,
                                              state_needs_grad, per_row);
}

ForwardResult lstm_cuda(const Tensor& input, const Tensor& h_0, const Tensor& c_0,
                        at::TensorList weights, const OptionalTensor& batch_sizes,
                        const OptionalTensor& lengths, const OptionalTensor& reset,
                        const OptionalTensor& h_mask, const OptionalTensor& zoneout_h,
                        const OptionalTensor& zoneout_c, bool save_cells, bool save_gates,
                        bool /*recompute*/, c10::string_view engine) {
  const Layer layer = check_layer(input, h_0, c_0, weights, batch_sizes, lengths, reset, h_mask,
                                  zoneout_h, zoneout_c);
  check_values(layer);
  const c10::cuda::CUDAGuard device(input.device());
  const GemmPrecision precision(input.scalar_type());
  const auto run = [&](auto function) { return function(layer, save_cells, save_gates, engine); };
  switch (input.scalar_type()) {
    case at::kDouble:
      return run(forward<double, double>);
    case at::kBFloat16:
      return run(forward<bfloat16, float>);
    case at::kHalf:
      return run(forward<float16, float>);
    default:
      return run(forward<float, float>);
  }
}

BackwardResult lstm_backward_cuda(const OptionalTensor& grad_output, const OptionalTensor& grad_h_n,
                                  const OptionalTensor& grad_c_n, const OptionalTensor& grad_cells,
                                  const Tensor& input, const Tensor& h_0, const Tensor& c_0,
                                  at::TensorList weights, const OptionalTensor& batch_sizes,
                                  const OptionalTensor& lengths, const OptionalTensor& reset,
                                  const OptionalTensor& h_mask, const OptionalTensor& zoneout_h,
                                  const OptionalTensor& zoneout_c, const Tensor& output,
                                  const Tensor& cells, const Tensor& gates, bool input_needs_grad,
                                  bool state_needs_grad, c10::string_view engine, bool per_row) {
  const Layer layer = check_layer(input, h_0, c_0, weights, batch_sizes, lengths, reset, h_mask,
                                  zoneout_h, zoneout_c);
  check_values(layer);
  const Saved saved = check_saved(layer, output, cells, gates, per_row);
  const OutputGrads grads = check_grads(layer, grad_output, grad_h_n, grad_c_n, grad_cells);
  const c10::cuda::CUDAGuard device(input.device());
  const GemmPrecision precision(input.scalar_type());
  const auto run = [&](auto function) {
    return function(layer, saved, grads, input_needs_grad, state_needs_grad, engine, per_row);
  };
  switch (input.scalar_type()) {
    case at::kDouble:
      return run(backward<double, double>);
    case at::kBFloat16:
      return run(backward<bfloat16, float>);
    case at::kHalf:
      return run(backward<float16, float>);
    default:
      return run(backward<float, float>);
  }
}

}  // namespace
}  // namespace fastlstm

TORCH_LIBRARY_IMPL(fastlstm, CUDA, m) {
  m.impl("lstm", &fastlstm::lstm_cuda);
  m.impl("lstm_backward", &fastlstm::lstm_backward_cuda);
}
