// Autograd key: forward saves gates and cells, backward is an op of its own, so that a compiled
// graph holds one forward and one backward node whatever the number of steps. Under create_graph
// the gradient is recomputed from differentiable operations instead (differentiable.h).
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "differentiable.h"
#include "ops.h"

namespace fastlstm {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

OptionalTensor if_defined(const Tensor& tensor) {
  return tensor.defined() ? OptionalTensor(tensor) : std::nullopt;
}

// Positions in the list of saved tensors; the weights stand at the end.
enum {
  kInput,
  kH0,
  kC0,
  kBatchSizes,
  kLengths,
  kReset,
  kHMask,
  kZoneoutH,
  kZoneoutC,
  kOutput,
  kCells,
  kGates,
  kWeights
};

struct LstmFunction : torch::autograd::Function<LstmFunction> {
  static constexpr bool is_traceable = true;  // compiled autograd may look inside

  static variable_list forward(AutogradContext* ctx, const Tensor& input, const Tensor& h_0,
                               const Tensor& c_0, at::TensorList weights,
                               const OptionalTensor& batch_sizes, const OptionalTensor& lengths,
                               const OptionalTensor& reset, const OptionalTensor& h_mask,
                               const OptionalTensor& zoneout_h, const OptionalTensor& zoneout_c,
                               bool recompute, const std::string& engine) {
    at::AutoDispatchBelowADInplaceOrView guard;
    auto [output, h_n, c_n, cells, gates] =
        call_lstm(input, h_0, c_0, weights, batch_sizes, lengths, reset, h_mask, zoneout_h,
                  zoneout_c, /*save_cells=*/true, /*save_gates=*/!recompute, recompute, engine);
    variable_list saved{input,
                        h_0,
                        c_0,
                        batch_sizes.value_or(Tensor()),
                        lengths.value_or(Tensor()),
                        reset.value_or(Tensor()),
                        h_mask.value_or(Tensor()),
                        zoneout_h.value_or(Tensor()),
                        zoneout_c.value_or(Tensor()),
                        output,
                        cells,
                        gates};
    saved.insert(saved.end(), weights.begin(), weights.end());
    ctx->save_for_backward(std::move(saved));
    ctx->saved_data["engine"] = engine;
    ctx->saved_data["recompute"] = recompute;
    ctx->set_materialize_grads(false);  // a gradient that nobody gave stays undefined
    return {output, h_n, c_n, cells, gates};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const variable_list saved = ctx->get_saved_variables();
    const std::vector<Tensor> weights(saved.begin() + kWeights, saved.end());
    const OptionalTensor batch_sizes = if_defined(saved[kBatchSizes]);
    const OptionalTensor lengths = if_defined(saved[kLengths]), reset = if_defined(saved[kReset]);
    const OptionalTensor h_mask = if_defined(saved[kHMask]);
    const OptionalTensor zoneout_h = if_defined(saved[kZoneoutH]);
    const OptionalTensor zoneout_c = if_defined(saved[kZoneoutC]);
    TORCH_CHECK(!grads[4].defined(), "lstm: the gates output is reserve space without a gradient");

    variable_list result(3 + weights.size() + 8);  // and what has no gradient, from batch_sizes on
    if (std::none_of(grads.begin(), grads.end(), [](const Tensor& g) { return g.defined(); }))
      return result;

    if (at::GradMode::is_enabled()) {
      const Layer layer = check_layer(saved[kInput], saved[kH0], saved[kC0], weights, batch_sizes,
                                      lengths, reset, h_mask, zoneout_h, zoneout_c);
      auto found = differentiable_backward(layer, {grads[0], grads[1], grads[2], grads[3]});
      std::move(found.begin(), found.end(), result.begin());
      return result;
    }
    const size_t directions = saved[kH0].sym_size(0).expect_int();
    const size_t each = weights.size() / directions;
    const bool input_needs_grad = ctx->needs_input_grad(0);
    const bool state_needs_grad = ctx->needs_input_grad({{1, 3}});
    // Without the weights' gradients the gates' do, which spares the products.
    const bool weights_need_grad = ctx->needs_input_grad({{3, 3 + weights.size()}});
    const bool normalizes = each >= 6, recompute = ctx->saved_data["recompute"].toBool();
    const bool per_row = !weights_need_grad && !normalizes && !recompute;
    // There is nothing to record, and the fallback for ops without a derivative is slow.
    at::AutoDispatchBelowADInplaceOrView guard;
    auto [grad_input, grad_h_0, grad_c_0, grad_weights] = call_lstm_backward(
        if_defined(grads[0]), if_defined(grads[1]), if_defined(grads[2]), if_defined(grads[3]),
        saved[kInput], saved[kH0], saved[kC0], weights, batch_sizes, lengths, reset, h_mask,
        zoneout_h, zoneout_c, saved[kOutput], saved[kCells], saved[kGates], input_needs_grad,
        state_needs_grad, ctx->saved_data["engine"].toStringRef(), per_row);
    if (input_needs_grad) result[0] = grad_input;
    if (state_needs_grad) result[1] = grad_h_0, result[2] = grad_c_0;
    if (!weights_need_grad) return result;
    const size_t unique = grad_weights.size() / directions;
    for (size_t d = 0; d < directions; ++d) {
      auto to = result.begin() + 3 + d * each;
      auto from = grad_weights.begin() + d * unique;
      for (size_t k = 0; k < unique; ++k) {
        *to++ = from[k];
        if (k == 2 && unique < each) *to++ = from[k];  // b_ih and b_hh are only ever added
      }
    }
    return result;
  }
};

ForwardResult lstm_autograd(const Tensor& input, const Tensor& h_0, const Tensor& c_0,
                            at::TensorList weights, const OptionalTensor& batch_sizes,
                            const OptionalTensor& lengths, const OptionalTensor& reset,
                            const OptionalTensor& h_mask, const OptionalTensor& zoneout_h,
                            const OptionalTensor& zoneout_c, bool save_cells, bool save_gates,
                            bool recompute, c10::string_view engine) {
  const auto needs_grad = [](const Tensor& t) { return t.requires_grad(); };
  if (at::GradMode::is_enabled() && (needs_grad(input) || needs_grad(h_0) || needs_grad(c_0) ||
                                     std::any_of(weights.begin(), weights.end(), needs_grad))) {
    auto r = LstmFunction::apply(input, h_0, c_0, weights, batch_sizes, lengths, reset, h_mask,
                                 zoneout_h, zoneout_c, recompute, std::string(engine));
    return {r[0], r[1], r[2], r[3], r[4]};
  }
  at::AutoDispatchBelowADInplaceOrView guard;
  return call_lstm(input, h_0, c_0, weights, batch_sizes, lengths, reset, h_mask, zoneout_h,
                   zoneout_c, save_cells, save_gates, recompute, engine);
}

}  // namespace

ForwardResult call_lstm(const Tensor& input, const Tensor& h_0, const Tensor& c_0,
                        at::TensorList weights, const OptionalTensor& batch_sizes,
                        const OptionalTensor& lengths, const OptionalTensor& reset,
                        const OptionalTensor& h_mask, const OptionalTensor& zoneout_h,
                        const OptionalTensor& zoneout_c, bool save_cells, bool save_gates,
                        bool recompute, c10::string_view engine) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("fastlstm::lstm", "")
                             .typed<decltype(call_lstm)>();
  return op.call(input, h_0, c_0, weights, batch_sizes, lengths, reset, h_mask, zoneout_h,
                 zoneout_c, save_cells, save_gates, recompute, engine);
}

BackwardResult call_lstm_backward(const OptionalTensor& grad_output, const OptionalTensor& grad_h_n,
                                  const OptionalTensor& grad_c_n, const OptionalTensor& grad_cells,
                                  const Tensor& input, const Tensor& h_0, const Tensor& c_0,
                                  at::TensorList weights, const OptionalTensor& batch_sizes,
                                  const OptionalTensor& lengths, const OptionalTensor& reset,
                                  const OptionalTensor& h_mask, const OptionalTensor& zoneout_h,
                                  const OptionalTensor& zoneout_c, const Tensor& output,
                                  const Tensor& cells, const Tensor& gates, bool input_needs_grad,
                                  bool state_needs_grad, c10::string_view engine, bool per_row) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("fastlstm::lstm_backward", "")
                             .typed<decltype(call_lstm_backward)>();
  return op.call(grad_output, grad_h_n, grad_c_n, grad_cells, input, h_0, c_0, weights, batch_sizes,
                 lengths, reset, h_mask, zoneout_h, zoneout_c, output, cells, gates,
                 input_needs_grad, state_needs_grad, engine, per_row);
}

}  // namespace fastlstm

TORCH_LIBRARY_IMPL(fastlstm, Autograd, m) { m.impl("lstm", &fastlstm::lstm_autograd); }
