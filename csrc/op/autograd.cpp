// Autograd key: forward saves gates and cells, backward is an op of its own, so that a compiled
// graph holds one forward and one backward node whatever the number of steps. Under create_graph
// the gradient is recomputed from differentiable operations instead (differentiable.h).
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/variable.h>
#include <torch/library.h>

#include <algorithm>
#include <string>
#include <utility>

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

// The memory that a tensor has now, without its graph; the count of writes in place is shared. So
// `weight.data = other` does not change what backward reads. And a node that keeps its outputs in
// this way is not part of a cycle while autograd saves them, which a hook may end by an exception.
Tensor present_memory(const Tensor& tensor) {
  if (is_wrapper(tensor)) return tensor;
  return Tensor(tensor.unsafeGetTensorImpl()->shallow_copy_and_detach(
      torch::autograd::impl::version_counter(tensor), /*allow_tensor_metadata_change=*/true));
}

// Whether backward reads the values of the k-th weight; else they may be written to before it, but
// for second derivatives.
bool is_read(size_t k, const WeightLayout& layout, const LstmCall& call) {
  const auto place = static_cast<int64_t>(k) % layout.each();
  const Tensor& steps = call.batch_sizes ? *call.batch_sizes : call.input;
  if (place == 0) return call.input.requires_grad();
  if (place == 1) return steps.size(0) > 1 || call.h_0.requires_grad();
  return !layout.bias || place > 3;
}

// Where ctx has the k-th weight if backward does not read it. (In an entry of its own: compiled
// autograd does not look into lists.)
std::string unread(size_t k) { return "weight" + std::to_string(k); }

// What autograd is to keep of the weights: those that backward reads, without the others, which go
// to ctx.
variable_list kept_weights(AutogradContext* ctx, const LstmCall& call, bool recompute) {
  variable_list kept(call.weights.begin(), call.weights.end());
  const auto has_values = [](const Tensor& t) {  // and so sizes, which a traced tensor may not have
    return !is_wrapper(t) || t.is_neg() || t.is_conj() || t._is_zerotensor();
  };
  if (!has_values(call.input) || !has_values(call.h_0) ||
      std::any_of(kept.begin(), kept.end(), is_wrapper))
    return kept;
  const auto layout = *WeightLayout::of(call.weights.size(), call.h_0.size(0));
  int64_t writes = 0;
  for (size_t k = 0; k < kept.size(); ++k) {
    kept[k] = present_memory(kept[k]);
    if (recompute || layout.normalizes || is_read(k, layout, call)) continue;
    writes += kept[k]._version();
    ctx->saved_data[unread(k)] = std::exchange(kept[k], Tensor());
  }
  ctx->saved_data["writes"] = writes;
  return kept;
}

// What backward gets of forward's arguments and results, from the list of saved tensors.
struct SavedCall {
  Tensor input, h_0, c_0;
  OptionalTensor batch_sizes, lengths, reset, h_mask, zoneout_h, zoneout_c;
  Tensor output, cells, gates;
  std::vector<Tensor> weights;

  explicit SavedCall(AutogradContext* ctx) {
    const variable_list saved = ctx->get_saved_variables();
    auto next = saved.begin();
    for (Tensor* tensor : {&input, &h_0, &c_0}) *tensor = *next++;
    for (OptionalTensor* tensor : {&batch_sizes, &lengths, &reset, &h_mask, &zoneout_h, &zoneout_c})
      *tensor = if_defined(*next++);
    for (Tensor* tensor : {&output, &cells, &gates}) *tensor = *next++;
    weights.assign(next, saved.end());
    for (size_t k = 0; k < weights.size(); ++k)
      if (!weights[k].defined()) weights[k] = ctx->saved_data.at(unread(k)).toTensor();
  }
  static variable_list list(const LstmCall& c, const ForwardResult& result,
                            const variable_list& weights) {
    const auto& [output, h_n, c_n, cells, gates] = result;
    variable_list saved{c.input, c.h_0, c.c_0};
    for (const OptionalTensor* tensor :
         {&c.batch_sizes, &c.lengths, &c.reset, &c.h_mask, &c.zoneout_h, &c.zoneout_c})
      saved.push_back(tensor->value_or(Tensor()));
    for (const Tensor* tensor : {&output, &cells, &gates}) saved.push_back(present_memory(*tensor));
    saved.insert(saved.end(), weights.begin(), weights.end());
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
    ctx->save_for_backward(SavedCall::list(call, result, kept_weights(ctx, call, recompute)));
    ctx->saved_data["engine"] = engine;
    ctx->saved_data["recompute"] = recompute;
    ctx->set_materialize_grads(false);  // a gradient that nobody gave stays undefined
    const auto& [output, h_n, c_n, cells, gates] = result;
    return {output, h_n, c_n, cells, gates};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    TORCH_CHECK(!grads[4].defined(), "lstm: the gates output is reserve space without a gradient");
    SavedCall saved(ctx);
    variable_list result(3 + saved.weights.size() + 8);  // the last 8 have no gradient
    if (std::none_of(grads.begin(), grads.end(), [](const Tensor& g) { return g.defined(); }))
      return result;
    const auto layout = *WeightLayout::of(saved.weights.size(), saved.h_0.sym_size(0).expect_int());
    if (at::GradMode::is_enabled()) {
      connect_weights(ctx, saved.weights);
      auto found = differentiable_backward(check_layer(saved.call()),
                                           {grads[0], grads[1], grads[2], grads[3]});
      std::move(found.begin(), found.end(), result.begin());
      if (layout.bias)
        for (size_t b_hh = 6; b_hh < 3 + saved.weights.size(); b_hh += layout.each())
          if (result[b_hh].defined()) result[b_hh] = result[b_hh].clone();
      return result;
    }
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
  // Gives the weights their graph back, for second derivatives.
  static void connect_weights(AutogradContext* ctx, std::vector<Tensor>& weights) {
    const auto& saved = ctx->saved_data;
    if (saved.find("writes") == saved.end()) return;
    int64_t writes = 0;
    for (size_t k = 0; k < weights.size(); ++k)
      if (saved.find(unread(k)) != saved.end()) writes += weights[k]._version();
    TORCH_CHECK(writes == saved.at("writes").toInt(),
                "one of the variables needed for gradient computation has been modified by an "
                "inplace operation: a weight of an LSTM, which second derivatives need");
    const auto node = torch::autograd::get_current_node();
    for (size_t k = 0; k < weights.size(); ++k)
      if (const auto& edge = node->next_edge(3 + k); edge.is_valid())
        weights[k] = torch::autograd::make_variable(weights[k], edge);
  }

  // The gradients of the weights in the order of the weights.
  static void place(const std::vector<Tensor>& gradients, const WeightLayout& layout,
                    variable_list::iterator to) {
    for (size_t k = 0; k < gradients.size(); ++k) {
      *to++ = gradients[k];
      // b_hh has b_ih's values, in memory of its own: users scale gradients in place.
      if (layout.bias && k % layout.gradients() == 2) *to++ = gradients[k].clone();
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
