// CPU key: checks the call, asks the planner for an engine, runs it.
#include <torch/library.h>

#include "../stepwise.h"
#include "kernels.h"
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
  template <typename T>
  static Tensor previous_hidden(const Layer& layer, int64_t d, const Tensor& output,
                                const std::vector<WalkStep>& steps) {
    return stepwise::previous_hidden(layer, d, output, steps);
  }
};

CpuEngine planned(c10::string_view engine, const Layer& layer) {
  const auto dtype = layer.input.scalar_type();
  const bool has_tiles = dtype == at::kFloat || dtype == at::kDouble ||
                         (dtype == at::kBFloat16 && bfloat16_kernels() != nullptr);
  CpuEngine chosen;
  TORCH_CHECK(
      choose_cpu_engine({engine.data(), engine.size()}, has_tiles && !layer.projects(), chosen),
      "lstm: expected engine to be \"auto\", \"stepwise\" or \"tiled\" on the CPU, and \"tiled\" "
      "only "
      "for float32, float64 or (with AVX512_BF16) bfloat16 and without proj_size, got \"",
      engine, "\" with ", dtype, layer.projects() ? " and proj_size" : "");
  return chosen;
}

template <typename T, typename A>
ForwardResult forward(const Layer& layer, bool save_cells, bool save_gates, bool tiled) {
  if constexpr (!std::is_same_v<T, float16>)
    if (tiled) return tiled_forward<T>(layer, save_cells, save_gates);
  return stepwise_forward<T, A, CpuKernels>(layer, save_cells, save_gates);
}

ForwardResult lstm_cpu(const Tensor& input, const Tensor& h_0, const Tensor& c_0,
                       at::TensorList weights, const OptionalTensor& batch_sizes,
                       const OptionalTensor& lengths, const OptionalTensor& reset, bool save_cells,
                       bool save_gates, c10::string_view engine) {
  const Layer layer = check_layer(input, h_0, c_0, weights, batch_sizes, lengths, reset);
  check_values(layer);
  const auto run = [&](auto function) {
    return function(layer, save_cells, save_gates, planned(engine, layer) == CpuEngine::kTiled);
  };
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

template <typename T, typename A>
BackwardResult backward(const Layer& layer, const Saved& saved, const OutputGrads& grads,
                        bool input_needs_grad, bool state_needs_grad, bool per_row, bool tiled) {
  if constexpr (!std::is_same_v<T, float16>)
    if (tiled)
      return tiled_backward<T>(layer, saved, grads, input_needs_grad, state_needs_grad, per_row);
  return stepwise_backward<T, A, CpuKernels>(layer, saved, grads, input_needs_grad,
                                             state_needs_grad, per_row);
}

BackwardResult lstm_backward_cpu(const OptionalTensor& grad_output, const OptionalTensor& grad_h_n,
                                 const OptionalTensor& grad_c_n, const OptionalTensor& grad_cells,
                                 const Tensor& input, const Tensor& h_0, const Tensor& c_0,
                                 at::TensorList weights, const OptionalTensor& batch_sizes,
                                 const OptionalTensor& lengths, const OptionalTensor& reset,
                                 const Tensor& output, const Tensor& cells, const Tensor& gates,
                                 bool input_needs_grad, bool state_needs_grad,
                                 c10::string_view engine, bool per_row) {
  const Layer layer = check_layer(input, h_0, c_0, weights, batch_sizes, lengths, reset);
  check_values(layer);
  const Saved saved = check_saved(layer, output, cells, gates);
  const OutputGrads grads = check_grads(layer, grad_output, grad_h_n, grad_c_n, grad_cells);
  const auto run = [&](auto function) {
    return function(layer, saved, grads, input_needs_grad, state_needs_grad, per_row,
                    planned(engine, layer) == CpuEngine::kTiled);
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

TORCH_LIBRARY_IMPL(fastlstm, CPU, m) {
  m.impl("lstm", &fastlstm::lstm_cpu);
  m.impl("lstm_backward", &fastlstm::lstm_backward_cpu);
}
