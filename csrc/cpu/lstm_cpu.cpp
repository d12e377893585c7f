// CPU key: checks the call, asks the planner for an engine, runs it.
#include <torch/library.h>

#include "core/torch_versions.h"
#include "cpu/plan.h"
#include "cpu/step.h"
#include "cpu/targets/kernels.h"
#include "cpu/walk/tiled.h"
#include "stepwise/backward.h"

namespace fastlstm {
namespace {

struct CpuStepKernels : stepwise::AtenProducts {
  template <class AnyStep>
  static void run(const AnyStep& step) {
    run_step(step);
  }
  template <typename T>
  static Tensor previous_hidden(const Layer& layer, int64_t d, const Tensor& output,
                                const std::vector<WalkStep>& steps) {
    return fastlstm::previous_hidden(layer, d, output, steps);
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

// function(T, A) for the dtype T of a tensor and the dtype A of its state.
template <typename Function>
auto dispatch(at::ScalarType dtype, const Function& function) {
  switch (dtype) {
#define FASTLSTM_CASE(T, A, name) \
  case at::k##name:               \
    return function(T(), A());
    FASTLSTM_FOR_EACH_DTYPE(FASTLSTM_CASE)
#undef FASTLSTM_CASE
    default:
      TORCH_INTERNAL_ASSERT(false, "check_layer lets no ", dtype, " pass");
  }
}

// Whether the processor multiplies the layer's dtype; else the tiled engine multiplies in float32.
bool has_product(at::ScalarType dtype) {
  return dispatch(dtype, [](auto t, auto) { return kernels<decltype(t)>().product != nullptr; });
}

// Whether a layer of 16 bits is converted to float32 on the way in, and rounded on the way out:
// with a projection, for a single step, where there is little to convert, and stepwise where the
// target has no kernels for it.
bool is_converted(const Layer& layer, bool tiled) {
  const auto dtype = layer.input.scalar_type();
  if (!tiled)
    return dispatch(dtype, [](auto t, auto) { return !kernels<decltype(t)>().row.forward; });
  return layer.input.element_size() == 2 &&
         (layer.projects() || (is_plain_step(layer) && !has_product(dtype)));
}

Tensor as_float(const Tensor& tensor) { return tensor.defined() ? tensor.to(at::kFloat) : tensor; }

// Whether a float32 layer multiplies in bfloat16: torch.backends.mkldnn.rnn.fp32_precision =
// "bf16", where the processor has such products. "tf32" is float32: three products of bfloat16 were
// slower.
bool multiplies_in_bfloat16(at::ScalarType dtype) {
  return dtype == at::kFloat && kernels<bfloat16>().product && rnn_multiplies_in_bfloat16();
}

// function(T, W) for the dtype T of a tensor and the dtype W of its products with weights.
template <typename Function>
auto dispatch_product(at::ScalarType dtype, bool projects, const Function& function) {
  if (!projects && multiplies_in_bfloat16(dtype)) return function(float(), bfloat16());
  return dispatch(dtype, [&](auto t, auto a) {
    if constexpr (!std::is_same_v<decltype(t), float16>)  // which no processor multiplies
      if (has_product(dtype)) return function(t, t);
    return function(t, a);
  });
}

ForwardResult forward(const Layer& layer, bool save_cells, bool save_gates, bool tiled) {
  const auto dtype = layer.input.scalar_type();
  if (is_converted(layer, tiled)) {
    const Layer in_float = as_float(layer);
    auto [output, h_n, c_n, cells, gates] =
        tiled ? tiled_forward<float>(in_float, save_cells, save_gates)
              : stepwise_forward<float, float, CpuStepKernels>(in_float, save_cells, save_gates);
    return {output.to(dtype), h_n.to(dtype), c_n.to(layer.c_0.scalar_type()), cells,
            gates.to(dtype)};
  }
  if (tiled)
    return dispatch_product(dtype, layer.projects(), [&](auto t, auto w) {
      return tiled_forward<decltype(t), decltype(w)>(layer, save_cells, save_gates);
    });
  return dispatch(dtype, [&](auto t, auto a) {
    return stepwise_forward<decltype(t), decltype(a), CpuStepKernels>(layer, save_cells,
                                                                      save_gates);
  });
}

BackwardResult backward(const Layer& layer, const Saved& saved, const OutputGrads& grads,
                        const GradientRequest& request, bool tiled) {
  const auto dtype = layer.input.scalar_type();
  if (is_converted(layer, tiled)) {
    const Layer in_float = as_float(layer);
    const Saved saved_float{as_float(saved.output), saved.cells, as_float(saved.gates)};
    const OutputGrads grads_float{as_float(grads.output), as_float(grads.h_n), as_float(grads.c_n),
                                  grads.cells};
    auto [grad_input, grad_h_0, grad_c_0, grad_weights] =
        tiled ? tiled_backward<float>(in_float, saved_float, grads_float, request)
              : stepwise_backward<float, float, CpuStepKernels>(in_float, saved_float, grads_float,
                                                                request);
    for (Tensor& gradient : grad_weights) gradient = gradient.to(dtype);
    return {grad_input.to(dtype), grad_h_0.to(dtype), grad_c_0.to(layer.c_0.scalar_type()),
            grad_weights};
  }
  if (tiled)
    return dispatch_product(dtype, layer.projects(), [&](auto t, auto w) {
      return tiled_backward<decltype(t), decltype(w)>(layer, saved, grads, request);
    });
  return dispatch(dtype, [&](auto t, auto a) {
    return stepwise_backward<decltype(t), decltype(a), CpuStepKernels>(layer, saved, grads,
                                                                       request);
  });
}

// Whether the two products of a single step backward are ATen's: each weight is read once, and
// packing it into panels costs more than tiles gain.
bool left_to_aten(const Layer& layer, const BackwardArguments& arguments) {
  const auto dtype = layer.input.scalar_type();
  return kernel_table().leaves_steps_to_aten && arguments.engine == "auto" &&
         arguments.request.per_row && is_plain_step(layer) && has_product(dtype) &&
         !multiplies_in_bfloat16(dtype);
}

ForwardResult lstm_cpu(const LstmCall& call, const ForwardOptions& options) {
  const Layer layer = check_layer(call);
  check_values(layer);
  return forward(layer, options.save_cells, options.save_gates, planned(options.engine, layer));
}

BackwardResult lstm_backward_cpu(const LstmCall& call, const BackwardArguments& arguments) {
  const Layer layer = check_layer(call);
  const Saved saved = check_saved(layer, arguments);
  const OutputGrads grads = check_grads(layer, arguments);
  check_values(layer, saved, grads);
  // The gradient of W_hr starts from the gates of all steps, which tiles compute chunk by chunk.
  const bool tiled = planned(arguments.engine, layer) &&
                     (saved.gates.defined() || !layer.projects()) &&
                     !left_to_aten(layer, arguments);
  return backward(layer, saved, grads, arguments.request, tiled);
}

}  // namespace

std::vector<Tensor> step_gradients_cpu(const std::vector<StepFactors>& steps) {
  const auto dtype = steps[0].d_gates.scalar_type();
  return dispatch_product(dtype, /*projects=*/false, [&](auto t, auto w) {
    return step_gradients<decltype(t), decltype(w)>(steps);
  });
}

}  // namespace fastlstm

TORCH_LIBRARY_IMPL(fastlstm, CPU, m) {
  m.impl("lstm", fastlstm::forward_op<fastlstm::lstm_cpu>);
  m.impl("lstm_backward", fastlstm::backward_op<fastlstm::lstm_backward_cpu>);
}
