// Autograd key: forward saves gates and cells, backward is an op of its own, so that a compiled
// graph holds one forward and one backward node whatever the number of steps. Under create_graph
// the gradient is recomputed from differentiable operations instead (differentiable.h).
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "core/call.h"
#include "core/layer.h"
#include "op/differentiable.h"
#include "op/step_weights.h"

namespace fastlstm {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

OptionalTensor if_defined(const Tensor& tensor) {
  return tensor.defined() ? OptionalTensor(tensor) : std::nullopt;
}

// What backward gets of forward's arguments and results, from the list of saved tensors.
struct SavedCall {
  Tensor input, h_0, c_0;
  OptionalTensor batch_sizes, lengths, reset, h_mask, zoneout_h, zoneout_c;
  Tensor output, cells, gates;
  std::vector<Tensor> weights;

  explicit SavedCall(const variable_list& saved) {
    auto next = saved.begin();
    for (Tensor* tensor : {&input, &h_0, &c_0}) *tensor = *next++;
    for (OptionalTensor* tensor : {&batch_sizes, &lengths, &reset, &h_mask, &zoneout_h, &zoneout_c})
      *tensor = if_defined(*next++);
    for (Tensor* tensor : {&output, &cells, &gates}) *tensor = *next++;
    weights.assign(next, saved.end());
  }
  static variable_list list(const LstmCall& c, const ForwardResult& result) {
    const auto& [output, h_n, c_n, cells, gates] = result;
    variable_list saved{c.input, c.h_0, c.c_0};
    for (const OptionalTensor* tensor :
         {&c.batch_sizes, &c.lengths, &c.reset, &c.h_mask, &c.zoneout_h, &c.zoneout_c})
      saved.push_back(tensor->value_or(Tensor()));
    saved.insert(saved.end(), {output, cells, gates});
    saved.insert(saved.end(), c.weights.begin(), c.weights.end());
    return saved;
  }
  LstmCall call() const {
    return {input, h_0, c_0, weights, batch_sizes, lengths, reset, h_mask, zoneout_h, zoneout_c};
  }
};

struct LstmFunction : torch::autograd::Function<LstmFunction> {
  static constexpr bool is_traceable = true;  // compiled autograd may look inside

  // One argument for each tensor: autograd looks for inputs among them.
  static variable_list forward(AutogradContext* ctx, const Tensor& input, const Tensor& h_0,
                               const Tensor& c_0, at::TensorList weights,
                               const OptionalTensor& batch_sizes, const OptionalTensor& lengths,
                               const OptionalTensor& reset, const OptionalTensor& h_mask,
                               const OptionalTensor& zoneout_h, const OptionalTensor& zoneout_c,
                               bool recompute, const std::string& engine) {
    at::AutoDispatchBelowADInplaceOrView guard;
    const LstmCall call{input,   h_0,   c_0,    weights,   batch_sizes,
                        lengths, reset, h_mask, zoneout_h, zoneout_c};
    const ForwardResult result =
        call_lstm(call, {/*save_cells=*/true, /*save_gates=*/!recompute, recompute, engine});
    ctx->save_for_backward(SavedCall::list(call, result));
    ctx->saved_data["engine"] = engine;
    ctx->saved_data["recompute"] = recompute;
    ctx->set_materialize_grads(false);  // a gradient that nobody gave stays undefined
    const auto& [output, h_n, c_n, cells, gates] = result;
    return {output, h_n, c_n, cells, gates};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    TORCH_CHECK(!grads[4].defined(), "lstm: the gates output is reserve space without a gradient");
    const SavedCall saved(ctx->get_saved_variables());
    variable_list result(3 + saved.weights.size() + 8);  // the last 8 have no gradient
    if (std::none_of(grads.begin(), grads.end(), [](const Tensor& g) { return g.defined(); }))
      return result;
    if (at::GradMode::is_enabled()) {
      auto found = differentiable_backward(check_layer(saved.call()),
                                           {grads[0], grads[1], grads[2], grads[3]});
      std::move(found.begin(), found.end(), result.begin());
      return result;
    }
    const auto layout = *WeightLayout::of(saved.weights.size(), saved.h_0.sym_size(0).expect_int());
    const bool input_needs_grad = ctx->needs_input_grad(0);
    const bool state_needs_grad = ctx->needs_input_grad({{1, 3}});
    // Without gradients of weights those of the gates are enough, which saves the products.
    const bool weights_need_grad = ctx->needs_input_grad({{3, 3 + saved.weights.size()}});
    const bool recompute = ctx->saved_data["recompute"].toBool();
    StepWeights* const shared = StepWeights::behind_current(3, grads);
    const bool leaves_weights = weights_need_grad && shared;
    const bool per_row = leaves_weights || (!weights_need_grad && !layout.normalizes && !recompute);
    // There is nothing to record, and the fallback for ops without a derivative is slow.
    at::AutoDispatchBelowADInplaceOrView guard;
    const OptionalTensor grad_output = if_defined(grads[0]), grad_h_n = if_defined(grads[1]),
                         grad_c_n = if_defined(grads[2]), grad_cells = if_defined(grads[3]);
    auto [grad_input, grad_h_0, grad_c_0, grad_weights] = call_lstm_backward(
        saved.call(), {grad_output, grad_h_n, grad_c_n, grad_cells, saved.output, saved.cells,
                       saved.gates, GradientRequest{input_needs_grad, state_needs_grad, per_row},
                       ctx->saved_data["engine"].toStringRef()});
    if (input_needs_grad) result[0] = grad_input;
    if (state_needs_grad) result[1] = grad_h_0, result[2] = grad_c_0;
    if (leaves_weights)
      shared->add({saved.input, saved.h_0, grad_weights[0]});
    else if (weights_need_grad)
      place(grad_weights, layout, result.begin() + 3);
    return result;
  }

 private:
  // The gradients of the weights in the order of the weights.
  static void place(const std::vector<Tensor>& gradients, const WeightLayout& layout,
                    variable_list::iterator to) {
    for (size_t k = 0; k < gradients.size(); ++k) {
      *to++ = gradients[k];
      if (layout.bias && k % layout.gradients() == 2) *to++ = gradients[k];  // b_hh has b_ih's
    }
  }
};

ForwardResult lstm_autograd(const LstmCall& c, const ForwardOptions& options) {
  const auto needs_grad = [](const Tensor& t) { return t.requires_grad(); };
  if (at::GradMode::is_enabled() &&
      (needs_grad(c.input) || needs_grad(c.h_0) || needs_grad(c.c_0) ||
       std::any_of(c.weights.begin(), c.weights.end(), needs_grad))) {
    auto r = LstmFunction::apply(c.input, c.h_0, c.c_0, c.weights, c.batch_sizes, c.lengths,
                                 c.reset, c.h_mask, c.zoneout_h, c.zoneout_c, options.recompute,
                                 std::string(options.engine));
    if (!options.recompute && StepWeights::serves(c))
      StepWeights::insert_behind(*r[0].grad_fn(), 3, c.weights);
    return {r[0], r[1], r[2], r[3], r[4]};
  }
  at::AutoDispatchBelowADInplaceOrView guard;
  return call_lstm(c, options);
}

}  // namespace
}  // namespace fastlstm

TORCH_LIBRARY_IMPL(fastlstm, Autograd, m) {
  m.impl("lstm", fastlstm::forward_op<fastlstm::lstm_autograd>);
}
