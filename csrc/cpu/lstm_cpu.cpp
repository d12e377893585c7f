// CPU key: checks the call, asks the planner for an engine, runs it.
#include <torch/library.h>

#include "cpu/gemm/prepacked.h"
#include "cpu/plan.h"
#include "cpu/step.h"
#include "cpu/targets/kernels.h"
#include "cpu/walk/tiled.h"
#include "stepwise/backward.h"

namespace fastlstm {
namespace {

struct CpuStepKernels : CpuSteps, stepwise::AtenProducts {};

// The format of a call's prepacked weights.
Format prepacked_format(const Layer& layer, std::string_view engine) {
  const Product& product = product_named(layer.kinds.format);
  const auto dtype = layer.input.scalar_type();
  TORCH_CHECK(!layer.normalizes() && !layer.h_mask && engine != "stepwise",
              "lstm_packed: expected neither layer normalization, recurrent dropout nor the engine "
              "\"stepwise\"");
  TORCH_CHECK((product.format == Format::float64) == (dtype == at::kDouble),
              "lstm_packed: expected input that goes with weights in ", layer.kinds.format,
              ", got ", dtype);
  return product.format;
}

// The plan of a call whose task says what is to be done with the layer.
CpuPlan plan_of(const Layer& layer, CpuTask task, std::string_view engine) {
  const bool is_stepwise = engine == "stepwise";
  TORCH_CHECK(is_stepwise || engine == "auto" || (engine == "tiled" && !task.only_stepwise),
              "lstm: expected engine to be \"auto\", \"stepwise\" or \"tiled\" on the CPU, and "
              "\"tiled\" only without layer normalization and recurrent dropout, got \"",
              engine, "\"", layer.options().empty() ? "" : " with ", layer.options());
  task.only_stepwise |= is_stepwise;
  return plan(task, cpu_machine());
}

BackwardResult backward(const Layer& layer, const CpuPlan& plan, const BackwardArguments& in) {
  return dispatch_dtype(plan.dtype, [&](auto t) {
    using T = decltype(t);
    if (plan.product) return tiled_backward<T>(layer, plan, in);
    return stepwise_backward<T, State_t<T>, CpuStepKernels>(layer, in);
  });
}

BackwardResult lstm_backward_cpu(LstmCall call, const BackwardArguments& arguments) {
  const Layer layer = check_layer(std::move(call));
  check_values(layer);
  check_backward(layer, arguments);
  CpuTask task = task_of(layer);
  task.backward = true;
  const CpuPlan plan = plan_of(layer, task, arguments.engine);
  if (plan.dtype == task.dtype) return backward(layer, plan, arguments);
  BackwardArguments as_floats = arguments;
  as_floats.output = arguments.output.to(at::kFloat);
  as_floats.gates = arguments.gates.to(at::kFloat);
  for (OptionalTensor* const grad :
       {&as_floats.grad_output, &as_floats.grad_h_n, &as_floats.grad_c_n})
    if (*grad) *grad = (*grad)->to(at::kFloat);
  auto [grad_input, grad_h_0, grad_c_0, grad_weights] = backward(as_float(layer), plan, as_floats);
  const auto dtype = layer.input.scalar_type();
  for (Tensor& gradient : grad_weights) gradient = gradient.to(dtype);
  return {grad_input.to(dtype), grad_h_0.to(dtype), grad_c_0.to(layer.c_0.scalar_type()),
          grad_weights};
}

}  // namespace

ForwardResult lstm_cpu(LstmCall call, const ForwardOptions& options) {
  const Layer layer = check_layer(std::move(call), /*allows_prepacked=*/true);
  check_values(layer);
  CpuTask task = task_of(layer);
  task.saves = options.save_cells || options.save_gates;
  if (layer.is_prepacked()) task.prepacked = prepacked_format(layer, options.engine);
  return forward_as_planned(layer, plan_of(layer, task, options.engine), options.save_cells,
                            options.save_gates);
}

ForwardResult forward_as_planned(const Layer& layer, const CpuPlan& plan, bool save_cells,
                                 bool save_gates) {
  const auto dtype = layer.input.scalar_type();
  if (plan.dtype != dtype_of(dtype)) {
    const auto [output, h_n, c_n, cells, gates] =
        forward_as_planned(as_float(layer), plan, save_cells, save_gates);
    return {output.to(dtype), h_n.to(dtype), c_n.to(layer.c_0.scalar_type()), cells,
            gates.defined() ? gates.to(dtype) : gates};
  }
  return dispatch_dtype(plan.dtype, [&](auto t) {
    using T = decltype(t);
    if (plan.product) return tiled_forward<T>(layer, plan, save_cells, save_gates);
    return stepwise_forward<T, State_t<T>, CpuStepKernels>(layer, save_cells, save_gates);
  });
}

}  // namespace fastlstm

TORCH_LIBRARY_IMPL(fastlstm, CPU, m) {
  for (const char* const name : {"lstm", "lstm_packed"})
    m.impl(name, fastlstm::op<fastlstm::lstm_cpu>);
  m.impl("lstm_backward", fastlstm::op<fastlstm::lstm_backward_cpu>);
}
