// The kernels of the ops for the dispatch key CPU. They check the call, ask the planner for an
// engine (plan.h), and run the engine.
#include "cpu/lstm_cpu.h"

#include <ATen/Parallel.h>
#include <torch/library.h>

#include <numeric>

#include "core/torch_versions.h"
#include "cpu/gemm/prepacked.h"
#include "cpu/walk/tiled.h"
#include "stepwise/backward.h"

namespace fastlstm {
namespace {

// Runs one step of the stepwise engine (stepwise/forward.h) for all rows, in parallel. Threads also
// divide the units of a row, unless the kernel needs whole rows.
struct CpuStepKernels {
  template <template <typename, typename> class S, typename T, typename A>
  static void run(const S<T, A>& step) {
    constexpr int64_t kUnitsPerPart = 256, kUnitsPerThread = 2048;
    const RowKernel<S<T, A>>& kernel = kernels<T>().row_kernels;
    const int64_t units = step.kWholeRows ? std::max<int64_t>(step.hidden_size, 1) : kUnitsPerPart;
    const int64_t parts = divide_up(step.hidden_size, units);
    const int64_t grain = divide_up(kUnitsPerThread, units);
    at::parallel_for(0, step.rows * parts, grain, [&](int64_t first, int64_t end) {
      for (int64_t k = first; k < end; ++k) {
        const int64_t begin = k % parts * units;
        kernel.run(step, k / parts, begin, begin + units);
      }
    });
  }
};

CpuTask task_of(const LayerCall& layer) {
  const Sizes s = layer.sizes();
  CpuTask task{.dtype = dtype_of(layer.input.scalar_type())};
  task.directions = s.directions, task.steps = s.steps, task.batch = s.batch;
  task.input_size = s.input_size, task.hidden_size = s.hidden_size;
  task.output_size = s.output_size, task.total_rows = s.flat_rows;
  task.projects = layer.projects();
  task.needs_stepwise = layer.normalizes() || layer.h_mask;
  task.is_dense = !layer.packed() && !layer.lengths;
  task.has_resets = layer.reset.has_value();
  const auto precision = rnn_precision();  // what the user requests in torch.backends
  if (precision == kTf32) task.precision = Precision::kTf32;
  if (precision == kBf16) task.precision = Precision::kBf16;
  if (layer.lengths) {
    const Tensor lengths = layer.lengths->contiguous();
    const int64_t* first = lengths.const_data_ptr<int64_t>();
    task.total_rows = std::accumulate(first, first + task.batch, int64_t(0));
  }
  return task;
}

Format prepacked_format(const LayerCall& layer, std::string_view engine) {
  const Format format = gemm_named(layer.weight_layout.format).format;
  const auto dtype = layer.input.scalar_type();
  TORCH_CHECK(
      !layer.normalizes() && !layer.h_mask && engine != "stepwise",
      "lstm_prepacked: expected neither layer normalization, recurrent dropout nor the engine "
      "\"stepwise\"");
  TORCH_CHECK((format == Format::float64) == (dtype == at::kDouble),
              "lstm_prepacked: expected float64 for input and weights or for neither, got ", dtype,
              " and ", layer.weight_layout.format);
  return format;
}

CpuPlan plan_of(const LayerCall& layer, CpuTask task, std::string_view engine) {
  const bool is_stepwise = engine == "stepwise";
  TORCH_CHECK(is_stepwise || engine == "auto" || (engine == "tiled" && !task.needs_stepwise),
              "lstm: expected engine to be \"auto\", \"stepwise\" or \"tiled\" on the CPU, and "
              "\"tiled\" only without layer normalization and recurrent dropout, got \"",
              engine, "\"", layer.options_in_use().empty() ? "" : " with ", layer.options_in_use());
  task.needs_stepwise |= is_stepwise;
  return make_plan(task, cpu_machine());
}

LayerCall as_float(LayerCall layer) {
  const auto convert = [](Tensor& tensor, const char*) {
    if (tensor.is_floating_point()) tensor = tensor.to(at::kFloat);
  };
  for_each_non_weight(layer, convert);
  for (Direction& d : layer.directions) for_each_weight(d, convert);
  return layer;
}

// Run the engine of a plan. The results have the dtypes of the layer.
ForwardResult forward(const LayerCall& layer, const CpuPlan& plan, const ForwardOptions& options) {
  const auto dtype = layer.input.scalar_type();
  if (plan.dtype != dtype_of(dtype)) {
    const auto [output, h_n, c_n, cells, gates] = forward(as_float(layer), plan, options);
    return {output.to(dtype), h_n.to(dtype), c_n.to(layer.c_0.scalar_type()), cells,
            gates.defined() ? gates.to(dtype) : gates};
  }
  if (plan.gemm) return tiled_forward(layer, plan, options);
  return dispatch_dtype(plan.dtype, [&](auto t) {
    using T = decltype(t);
    return stepwise_forward<T, State_t<T>, CpuStepKernels>(layer, options);
  });
}

BackwardResult backward(const LayerCall& layer, const CpuPlan& plan, const BackwardArguments& in) {
  const auto dtype = layer.input.scalar_type();
  if (plan.dtype != dtype_of(dtype)) {
    BackwardArguments floats = in;
    floats.output = in.output.to(at::kFloat), floats.gates = in.gates.to(at::kFloat);
    for (OptionalTensor* const grad : {&floats.grad_output, &floats.grad_h_n, &floats.grad_c_n})
      if (*grad) *grad = (*grad)->to(at::kFloat);
    auto [grad_input, grad_h_0, grad_c_0, grad_weights] = backward(as_float(layer), plan, floats);
    for (Tensor& gradient : grad_weights) gradient = gradient.to(dtype);
    return {grad_input.to(dtype), grad_h_0.to(dtype), grad_c_0.to(layer.c_0.scalar_type()),
            grad_weights};
  }
  if (plan.gemm) return tiled_backward(layer, plan, in);
  return dispatch_dtype(plan.dtype, [&](auto t) {
    using T = decltype(t);
    return stepwise_backward<T, State_t<T>, CpuStepKernels>(layer, in);
  });
}

BackwardResult lstm_backward_cpu(LstmCall call, const BackwardArguments& arguments) {
  const LayerCall layer = check_layer(std::move(call));
  check_values(layer);
  check_backward(layer, arguments);
  CpuTask task = task_of(layer);
  task.backward = true;
  return backward(layer, plan_of(layer, task, arguments.engine), arguments);
}

}  // namespace

ForwardResult lstm_cpu(LstmCall call, const ForwardOptions& options) {
  const LayerCall layer = check_layer(std::move(call), /*allows_prepacked=*/true);
  check_values(layer);
  CpuTask task = task_of(layer);
  task.saves_for_backward = options.save_cells || options.save_gates;
  if (layer.is_prepacked()) task.prepacked = prepacked_format(layer, options.engine);
  return forward(layer, plan_of(layer, task, options.engine), options);
}

}  // namespace fastlstm

TORCH_LIBRARY_IMPL(fastlstm, CPU, m) {
  for (const char* const name : {"lstm", "lstm_prepacked"})
    m.impl(name, fastlstm::op<fastlstm::lstm_cpu>);
  m.impl("lstm_backward", fastlstm::op<fastlstm::lstm_backward_cpu>);
}
