// Autograd key: forward saves gates and cells, backward is an op of its own, so that a compiled
// graph holds one forward and one backward node whatever the number of steps. Under create_graph
// the gradients come from the equations in Python instead, which can be differentiated.
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/variable.h>
#include <torch/library.h>

#include <algorithm>
#include <string>

#include "core/call.h"
#include "core/layer.h"
#include "op/second_derivatives.h"

namespace fastlstm {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

OptionalTensor if_defined(const Tensor& tensor) {
  return tensor.defined() ? OptionalTensor(tensor) : std::nullopt;
}

// The memory that a tensor has now, without its graph; the count of writes in place is shared. So
// `weight.data = other` does not change what backward reads. And a node that keeps its outputs in
// this way is not part of a cycle while autograd saves them, which a hook may end by an exception.
Tensor present_memory(const Tensor& tensor) {
  if (is_wrapper(tensor)) return tensor;
  return Tensor(tensor.unsafeGetTensorImpl()->shallow_copy_and_detach(
      torch::autograd::impl::version_counter(tensor), /*allow_tensor_metadata_change=*/true));
}

// The arguments and results of forward that backward gets.
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
    for (const Tensor* tensor : {&output, &cells, &gates}) saved.push_back(present_memory(*tensor));
    for (const OptionalTensor* option :
         {&call.batch_sizes, &call.lengths, &call.reset, &call.h_mask})
      saved.push_back(option->value_or(Tensor()));
    for (const Tensor& weight : call.weights) saved.push_back(present_memory(weight));
    ctx->save_for_backward(saved);
    ctx->saved_data["layout"] = call.layout;
  }
};

// Autograd looks for inputs among the arguments of forward: input, h_0, c_0 and the weights are in
// one list, and the rest, of which nothing has a gradient, in `call`.
struct LstmFunction : torch::autograd::Function<LstmFunction> {
  static constexpr bool is_traceable = true;  // compiled autograd may look inside
  static constexpr size_t kFirstWeight = 3;

  static variable_list forward(AutogradContext* ctx, at::TensorList /*inputs*/,
                               const LstmCall& call, const ForwardOptions& options) {
    at::AutoDispatchBelowADInplaceOrView guard;
    const ForwardResult result =
        call_lstm(call, {/*save_cells=*/true, /*save_gates=*/true, options.engine});
    SavedCall::save(ctx, call, result);
    ctx->saved_data["engine"] = options.engine;
    ctx->set_materialize_grads(false);  // a gradient that nobody gave stays undefined
    const auto& [output, h_n, c_n, cells, gates] = result;
    return {output, h_n, c_n, cells, gates};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    TORCH_CHECK(!grads[4].defined(), "lstm: the gates output is reserve space without a gradient");
    SavedCall saved(ctx);
    const size_t end = kFirstWeight + saved.call.weights.size();
    variable_list result(end + 2);  // the last 2 have no gradient
    if (std::none_of(grads.begin(), grads.end(), [](const Tensor& g) { return g.defined(); }))
      return result;
    if (at::GradMode::is_enabled()) {
      connect_weights(saved.call.weights);
      TORCH_CHECK(differentiable_gradients, "lstm: second derivatives need fastlstm in Python");
      const auto gradients =
          differentiable_gradients({grads.begin(), grads.begin() + 4}, saved.call);
      for (size_t k = 0; k < gradients.size(); ++k) result[k] = gradients[k].value_or(Tensor());
      return result;
    }
    const auto layout = WeightLayout::of(saved.call.layout);
    const bool input_needs_grad = ctx->needs_input_grad(0);
    const bool state_needs_grad = ctx->needs_input_grad({{1, 3}});
    // Without gradients of weights those of the gates are enough, which saves the products.
    const bool weights_need_grad = ctx->needs_input_grad({{kFirstWeight, end}});
    const bool per_row = !weights_need_grad && !layout.normalizes;
    // There is nothing to record, and the fallback for ops without a derivative is slow.
    at::AutoDispatchBelowADInplaceOrView guard;
    auto [grad_input, grad_h_0, grad_c_0, grad_weights] = call_lstm_backward(
        saved.call, {if_defined(grads[0]), if_defined(grads[1]), if_defined(grads[2]),
                     if_defined(grads[3]), saved.output, saved.cells, saved.gates,
                     GradientRequest{input_needs_grad, state_needs_grad, per_row},
                     ctx->saved_data["engine"].toStringRef()});
    if (input_needs_grad) result[0] = grad_input;
    if (state_needs_grad) result[1] = grad_h_0, result[2] = grad_c_0;
    if (weights_need_grad) place(grad_weights, layout, result.begin() + kFirstWeight);
    return result;
  }

 private:
  // Gives the weights their graph back, for second derivatives.
  static void connect_weights(std::vector<Tensor>& weights) {
    const auto node = torch::autograd::get_current_node();
    for (size_t k = 0; k < weights.size(); ++k) {
      const auto& edge = node->next_edge(kFirstWeight + k);
      if (!edge.is_valid() || weights[k].requires_grad()) continue;
      weights[k] = weights[k].detach();
      torch::autograd::impl::set_gradient_edge(weights[k], edge);
    }
  }

  // The gradients of the weights in the order of the weights.
  static void place(const std::vector<Tensor>& gradients, const WeightLayout& layout,
                    variable_list::iterator to) {
    for (auto next = gradients.begin(); next != gradients.end();)
      for_each_weight_of(layout, [&](const NamedWeight& weight) {
        // Another's values in memory of its own: users scale gradients in place.
        *to++ = weight.has_gradient() ? *next++ : std::prev(next)->clone();
      });
  }
};

ForwardResult lstm_autograd(LstmCall c, const ForwardOptions& options) {
  const auto needs_grad = [](const Tensor& t) { return t.requires_grad(); };
  if (at::GradMode::is_enabled() &&
      (needs_grad(c.input) || needs_grad(c.h_0) || needs_grad(c.c_0) ||
       std::any_of(c.weights.begin(), c.weights.end(), needs_grad))) {
    variable_list inputs{c.input, c.h_0, c.c_0};
    inputs.insert(inputs.end(), c.weights.begin(), c.weights.end());
    auto r = LstmFunction::apply(at::TensorList(inputs), c, options);
    return {r[0], r[1], r[2], r[3], r[4]};
  }
  at::AutoDispatchBelowADInplaceOrView guard;
  return call_lstm(c, options);
}

}  // namespace
}  // namespace fastlstm

TORCH_LIBRARY_IMPL(fastlstm, Autograd, m) { m.impl("lstm", fastlstm::op<fastlstm::lstm_autograd>); }
