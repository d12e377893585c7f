// CPU key: checks the call, asks the planner for an engine, runs it.
#include <torch/library.h>

#include "../stepwise.h"
#include "plan.h"
#include "step.h"
#include "tiled.h"

namespace fastlstm {
namespace {

struct CpuKernels {
  template <typename T, typename A>
  static void forward(const StepForward<T, A>& step) {
    step_forward(step);
  }
  template <typename T, typename A>
  static void backward(const StepBackward<T, A>& step) {
    step_backward(step);
  }
};

CpuEngine planned(c10::string_view engine, const Layer& layer) {
  const auto dtype = layer.input.scalar_type();
  CpuEngine chosen;
  TORCH_CHECK(choose_cpu_engine({engine.data(), engine.size()}, state_dtype(dtype) != dtype,
                                layer.projects(), chosen),
              "lstm: expected engine to be \"auto\", \"stepwise\" or \"tiled\" on the CPU, and "
              "\"tiled\" only for float32 or float64 without proj_size, got \"",
              engine, "\" with ", dtype, layer.projects() ? " and proj_size" : "");
  return chosen;
}

ForwardResult lstm_cpu(const Tensor& input, const Tensor& h_0, const Tensor& c_0,
                       at::TensorList weights, const OptionalTensor& batch_sizes,
                       const OptionalTensor& lengths, const OptionalTensor& reset, bool save_cells,
                       bool save_gates, c10::string_view engine) {
  const Layer layer = check_layer(input, h_0, c_0, weights, batch_sizes, lengths, reset);
  check_values(layer);
  if (planned(engine, layer) == CpuEngine::kTiled)
    return input.scalar_type() == at::kDouble ? tiled_forward<double>(layer, save_cells, save_gates)
                                              : tiled_forward<float>(layer, save_cells, save_gates);
  switch (input.scalar_type()) {
    case at::kDouble:
      return stepwise_forward<double, double, CpuKernels>(layer, save_cells, save_gates);
    case at::kBFloat16:
      return stepwise_forward<bfloat16, float, CpuKernels>(layer, save_cells, save_gates);
    case at::kHalf:
      return stepwise_forward<float16, float, CpuKernels>(layer, save_cells, save_gates);
    default:
      return stepwise_forward<float, float, CpuKernels>(layer, save_cells, save_gates);
  }
}

BackwardResult lstm_backward_cpu(const OptionalTensor& grad_output, const OptionalTensor& grad_h_n,
                                 const OptionalTensor& grad_c_n, const OptionalTensor& grad_cells,
                                 const Tensor& input, const Tensor& h_0, const Tensor& c_0,
                                 at::TensorList weights, const OptionalTensor& batch_sizes,
                                 const OptionalTensor& lengths, const OptionalTensor& reset,
                                 const Tensor& output, const Tensor& cells, const Tensor& gates,
                                 bool input_needs_grad, bool state_needs_grad,
                                 c10::string_view engine) {
  const Layer layer = check_layer(input, h_0, c_0, weights, batch_sizes, lengths, reset);
  check_values(layer);
  const Saved saved = check_saved(layer, output, cells, gates);
  const OutputGrads grads = check_grads(layer, grad_output, grad_h_n, grad_c_n, grad_cells);
  if (planned(engine, layer) == CpuEngine::kTiled)
    return input.scalar_type() == at::kDouble
               ? tiled_backward<double>(layer, saved, grads, input_needs_grad, state_needs_grad)
               : tiled_backward<float>(layer, saved, grads, input_needs_grad, state_needs_grad);
  switch (input.scalar_type()) {
    case at::kDouble:
      return stepwise_backward<double, double, CpuKernels>(layer, saved, grads, input_needs_grad);
    case at::kBFloat16:
      return stepwise_backward<bfloat16, float, CpuKernels>(layer, saved, grads, input_needs_grad);
    case at::kHalf:
      return stepwise_backward<float16, float, CpuKernels>(layer, saved, grads, input_needs_grad);
    default:
      return stepwise_backward<float, float, CpuKernels>(layer, saved, grads, input_needs_grad);
  }
}

}  // namespace
}  // namespace fastlstm

TORCH_LIBRARY_IMPL(fastlstm, CPU, m) {
  m.impl("lstm", &fastlstm::lstm_cpu);
  m.impl("lstm_backward", &fastlstm::lstm_backward_cpu);
}
