// The Autograd key. Forward saves cells and gates. Backward is a separate op, so that a compiled
// graph holds one forward and one backward node for any number of steps. Under create_graph
// fastlstm/engine/by_reference.py computes gradients that can be differentiated instead.
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/library.h>

#include <algorithm>

#include "core/layer_call.h"

namespace fastlstm {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

OptionalTensor if_defined(const Tensor& tensor) {
  return tensor.defined() ? OptionalTensor(tensor) : std::nullopt;
}

// Returns an alias of `tensor` without its autograd graph, or a wrapper tensor unchanged. The alias
// shares the version counter, by which autograd detects writes in place, and keeps the memory if
// the user assigns `weight.data = other`. The output itself must not be saved: it and its node
// would own each other until the save ends, and an error in a saved-tensor hook would leak both.
Tensor detached_alias(const Tensor& tensor) {
  if (is_wrapper(tensor)) return tensor;
  return Tensor(tensor.unsafeGetTensorImpl()->shallow_copy_and_detach(
      torch::autograd::impl::version_counter(tensor), /*allow_tensor_metadata_change=*/true));
}

struct SavedCall {
  LstmCall call;
  Tensor output, cells, gates;

  explicit SavedCall(AutogradContext* ctx) {
    const variable_list saved = ctx->get_saved_variables();
    auto next = saved.begin();
    for (Tensor* tensor : {&call.input, &call.h_0, &call.c_0, &output, &cells, &gates})
      *tensor = *next++;
    for (OptionalTensor* option : {&call.batch_sizes, &call.lengths, &call.reset, &call.h_mask})
      *option = if_defined(*next++);
    call.weights.assign(next, saved.end());
    call.layout = ctx->saved_data["layout"].toStringRef();
  }
  static void save(AutogradContext* ctx, const LstmCall& call, const ForwardResult& result) {
    const auto& [output, h_n, c_n, cells, gates] = result;
    variable_list saved{call.input, call.h_0, call.c_0};
    // Backward of a single step reads only the shape of the output, which h_0 has too.
    const bool same_shape_as_h_0 =
        !call.batch_sizes && call.h_0.sym_size(0) == 1 && call.input.sym_size(0) == 1;
    saved.push_back(same_shape_as_h_0 ? call.h_0 : detached_alias(output));
    for (const Tensor* tensor : {&cells, &gates}) saved.push_back(detached_alias(*tensor));
    for (const OptionalTensor* option :
         {&call.batch_sizes, &call.lengths, &call.reset, &call.h_mask})
      saved.push_back(option->value_or(Tensor()));
    for (const Tensor& weight : call.weights) saved.push_back(detached_alias(weight));
    ctx->save_for_backward(saved);
    ctx->saved_data["layout"] = call.layout;
  }
};

// The op as a node of autograd. Autograd does not see the tensors inside the struct `call`, so
// those that can have a gradient are passed again as one list: input, h_0, c_0 and the weights.
struct LstmFunction : torch::autograd::Function<LstmFunction> {
  static constexpr bool is_traceable = true;  // compiled autograd may trace backward
  static constexpr size_t kFirstWeight = 3;

  static variable_list forward(AutogradContext* ctx, at::TensorList /*inputs*/,
                               const LstmCall& call, const ForwardOptions& options) {
    at::AutoDispatchBelowADInplaceOrView guard;
    const ForwardResult result =
        call_lstm(call, {/*save_cells=*/true, /*save_gates=*/true, options.engine});
    SavedCall::save(ctx, call, result);
    ctx->saved_data["engine"] = options.engine;
    ctx->set_materialize_grads(false);  // missing gradients stay undefined tensors
    const auto& [output, h_n, c_n, cells, gates] = result;
    return {output, h_n, c_n, cells, gates};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    TORCH_CHECK(!grads[4].defined(), "lstm: got a gradient of gates, which is not differentiable");
    SavedCall saved(ctx);
    const size_t weights_end = kFirstWeight + saved.call.weights.size();
    variable_list result(weights_end + 2);  // `call` and `options` come last and have no gradient
    if (std::none_of(grads.begin(), grads.end(), [](const Tensor& g) { return g.defined(); }))
      return result;
    if (at::GradMode::is_enabled()) {
      connect_weights(saved.call.weights);
      TORCH_CHECK(differentiable_gradients, "lstm: create_graph needs the Python package fastlstm");
      grads.pop_back();  // of gates
      auto to = result.begin();
      for (const OptionalTensor& gradient : differentiable_gradients(grads, saved.call))
        *to++ = gradient.value_or(Tensor());
      return result;
    }
    const auto layout = WeightLayout::of(saved.call.layout);
    const bool input_needs_grad = ctx->needs_input_grad(0);
    const bool state_needs_grad = ctx->needs_input_grad({{1, 3}});
    // If no weight needs a gradient, lstm_backward returns d_gates and skips the weights' GEMMs.
    const bool weights_need_grad = ctx->needs_input_grad({{kFirstWeight, weights_end}});
    const bool return_d_gates = !weights_need_grad && !layout.normalizes;
    // The guard makes the dispatcher skip its slow fallback for ops without an Autograd kernel.
    at::AutoDispatchBelowADInplaceOrView guard;
    auto [grad_input, grad_h_0, grad_c_0, grad_weights] = call_lstm_backward(
        saved.call, {if_defined(grads[0]), if_defined(grads[1]), if_defined(grads[2]),
                     if_defined(grads[3]), saved.output, saved.cells, saved.gates,
                     GradientRequest{input_needs_grad, state_needs_grad, return_d_gates},
                     ctx->saved_data["engine"].toStringRef()});
    if (input_needs_grad) result[0] = grad_input;
    if (state_needs_grad) result[1] = grad_h_0, result[2] = grad_c_0;
    if (weights_need_grad) order_gradients(grad_weights, layout, result.begin() + kFirstWeight);
    return result;
  }

 private:
  // Connects the saved weights, which are detached, to their graph again, for second derivatives.
  static void connect_weights(std::vector<Tensor>& weights) {
    const auto node = torch::autograd::get_current_node();
    auto next = node->next_edges().begin() + kFirstWeight;
    for (Tensor& weight : weights) {
      const torch::autograd::Edge& edge = *next++;
      if (!edge.is_valid() || weight.requires_grad()) continue;
      weight = weight.detach();
      torch::autograd::impl::set_gradient_edge(weight, edge);
    }
  }

  // Writes the gradients from `to` on, in the order of the weights. b_hh gets a copy of the
  // gradient of b_ih, because users scale gradients in place.
  static void order_gradients(const std::vector<Tensor>& gradients, const WeightLayout& layout,
                              variable_list::iterator to) {
    for (auto next = gradients.begin(); next != gradients.end();)
      for (const NamedWeight& weight : kWeights)
        if (layout.*weight.is_there)
          *to++ = weight.has_gradient() ? *next++ : std::prev(next)->clone();
  }
};

ForwardResult lstm_autograd(LstmCall call, const ForwardOptions& options) {
  if (torch::autograd::compute_requires_grad(call.input, call.h_0, call.c_0,
                                             at::TensorList(call.weights))) {
    variable_list inputs{call.input, call.h_0, call.c_0};
    inputs.insert(inputs.end(), call.weights.begin(), call.weights.end());
    auto r = LstmFunction::apply(at::TensorList(inputs), call, options);
    return {r[0], r[1], r[2], r[3], r[4]};
  }
  at::AutoDispatchBelowADInplaceOrView guard;
  return call_lstm(call, options);
}

}  // namespace
}  // namespace fastlstm

TORCH_LIBRARY_IMPL(fastlstm, Autograd, m) { m.impl("lstm", fastlstm::op<fastlstm::lstm_autograd>); }
