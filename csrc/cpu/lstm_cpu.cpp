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
  template <typename T, typename A>
  static void forward_normed(const NormForward<T, A>& step) {
    step_forward_normed(step);
  }
  template <typename T, typename A>
  static void backward_normed(const NormBackward<T, A>& step) {
    step_backward_normed(step);
  }
};

// Whether the tiled engine is to run.
bool planned(c10::string_view engine, const Layer& layer) {
  CpuEngine chosen;
  TORCH_CHECK(choose_cpu_engine({engine.data(), engine.size()}, layer.normalizes(), chosen),
              "lstm: expected engine to be \"auto\", \"stepwise\" or \"tiled\" on the CPU, and "
              "\"tiled\" only without layer normalisation, got \"",
              engine, "\"", layer.options().empty() ? "" : " with ", layer.options());
  // Products with a side of 0 are left to ATen.
  const bool empty = layer.input_size.expect_int() == 0 || layer.hidden_size.expect_int() == 0 ||
                     layer.output_size.expect_int() == 0;
  return chosen == CpuEngine::kTiled && !empty;
}

// Where there are no tiles for a 16-bit dtype, the tiled engine computes in float32: everything is
// converted once on the way in and rounded once on the way out.
bool has_tiles(const Layer& layer) {
  const auto dtype = layer.input.scalar_type();
  return dtype == at::kFloat || dtype == at::kDouble ||
         (dtype == at::kBFloat16 && bfloat16_kernels() != nullptr && !layer.projects());
}

Tensor as_float(const Tensor& tensor) { return tensor.defined() ? tensor.to(at::kFloat) : tensor; }

Layer as_float(const Layer& original) {
  Layer layer = original;
  for (Tensor* tensor : {&layer.input, &layer.h_0, &layer.c_0}) *tensor = as_float(*tensor);
  for (Direction& d : layer.directions)
    for (Tensor* tensor : {&d.w_ih, &d.w_hh, &d.b_ih, &d.b_hh, &d.w_hr})
      *tensor = as_float(*tensor);
  for (OptionalTensor* mask : {&layer.h_mask, &layer.zoneout_h, &layer.zoneout_c})
    if (*mask) *mask = as_float(**mask);
  return layer;
}

// function(T, A) for the dtype T of a tensor and the dtype A of its state.
template <typename Function>
auto dispatch(at::ScalarType dtype, const Function& function) {
  switch (dtype) {
    case at::kDouble:
      return function(double(), double());
    case at::kBFloat16:
      return function(bfloat16(), float());
    case at::kHalf:
      return function(float16(), float());
    default:
      return function(float(), float());
  }
}

ForwardResult forward(const Layer& layer, bool save_cells, bool save_gates, bool tiled) {
  const auto dtype = layer.input.scalar_type();
  if (tiled && !has_tiles(layer)) {
    auto [output, h_n, c_n, cells, gates] =
        tiled_forward<float>(as_float(layer), save_cells, save_gates);
    return {output.to(dtype), h_n.to(dtype), c_n.to(dtype), cells, gates.to(dtype)};
  }
  return dispatch(dtype, [&](auto t, auto a) {
    using T = decltype(t);
    if constexpr (!std::is_same_v<T, float16>)
      if (tiled) return tiled_forward<T>(layer, save_cells, save_gates);
    return stepwise_forward<T, decltype(a), CpuKernels>(layer, save_cells, save_gates);
  });
}

BackwardResult backward(const Layer& layer, const Saved& saved, const OutputGrads& grads,
                        bool input_needs_grad, bool state_needs_grad, bool per_row, bool tiled) {
  const auto dtype = layer.input.scalar_type();
  if (tiled && !has_tiles(layer)) {
    auto [grad_input, grad_h_0, grad_c_0, grad_weights] = tiled_backward<float>(
        as_float(layer), {as_float(saved.output), saved.cells, as_float(saved.gates)},
        {as_float(grads.output), as_float(grads.h_n), as_float(grads.c_n), grads.cells},
        input_needs_grad, state_needs_grad, per_row);
    for (Tensor& gradient : grad_weights) gradient = gradient.to(dtype);
    return {grad_input.to(dtype), grad_h_0.to(dtype), grad_c_0.to(dtype), grad_weights};
  }
  return dispatch(dtype, [&](auto t, auto a) {
    using T = decltype(t);
    if constexpr (!std::is_same_v<T, float16>)
      if (tiled)
        return tiled_backward<T>(layer, saved, grads, input_needs_grad, state_needs_grad, per_row);
    return stepwise_backward<T, decltype(a), CpuKernels>(layer, saved, grads, input_needs_grad,
                                                         state_needs_grad, per_row);
  });
}

ForwardResult lstm_cpu(const Tensor& input, const Tensor& h_0, const Tensor& c_0,
                       at::TensorList weights, const OptionalTensor& batch_sizes,
                       const OptionalTensor& lengths, const OptionalTensor& reset,
                       const OptionalTensor& h_mask, const OptionalTensor& zoneout_h,
                       const OptionalTensor& zoneout_c, bool save_cells, bool save_gates,
                       bool /*recompute*/, c10::string_view engine) {
  const Layer layer = check_layer(input, h_0, c_0, weights, batch_sizes, lengths, reset, h_mask,
                                  zoneout_h, zoneout_c);
  check_values(layer);
  return forward(layer, save_cells, save_gates, planned(engine, layer));
}

BackwardResult lstm_backward_cpu(const OptionalTensor& grad_output, const OptionalTensor& grad_h_n,
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
  // The gradient of W_hr starts from the gates of all steps, which tiles make chunk by chunk.
  const bool tiled = planned(engine, layer) && (saved.gates.defined() || !layer.projects());
  return backward(layer, saved, check_grads(layer, grad_output, grad_h_n, grad_c_n, grad_cells),
                  input_needs_grad, state_needs_grad, per_row, tiled);
}

}  // namespace
}  // namespace fastlstm

TORCH_LIBRARY_IMPL(fastlstm, CPU, m) {
  m.impl("lstm", &fastlstm::lstm_cpu);
  m.impl("lstm_backward", &fastlstm::lstm_backward_cpu);
}
