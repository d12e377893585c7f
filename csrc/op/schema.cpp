// The ops: their schemas, and their shapes on symbolic sizes (Meta).
#include <torch/library.h>

#include <string_view>

#include "core/layer.h"
#include "core/operators.h"

namespace fastlstm {
namespace {

ForwardResult lstm_meta(const LstmCall& call, const ForwardOptions& requested) {
  const Layer layer = check_layer(call);
  const c10::SymInt directions = layer.num_directions();
  const auto options = call.input.options();
  const auto saved = [&](bool save, const c10::SymInt& size, at::ScalarType dtype) {
    return at::empty_symint(save ? layer.sequence(size, true) : std::vector<c10::SymInt>{0},
                            options.dtype(dtype));
  };
  return {at::empty_symint(layer.sequence(directions * layer.output_size, false), options),
          at::empty_symint({directions, layer.batch, layer.output_size}, options),
          at::empty_symint({directions, layer.batch, layer.hidden_size}, call.c_0.options()),
          saved(requested.save_cells, layer.hidden_size, state_dtype(call.input.scalar_type())),
          saved(requested.save_gates, 4 * layer.hidden_size, call.input.scalar_type())};
}

BackwardResult lstm_backward_meta(const LstmCall& call, const BackwardArguments& arguments) {
  const Layer layer = check_layer(call);
  check_saved(layer, arguments);
  check_grads(layer, arguments);
  const auto like = [](const Tensor& t) { return at::empty_symint(t.sym_sizes(), t.options()); };
  std::vector<Tensor> grad_weights;
  for (const Direction& d : layer.directions)
    if (arguments.request.per_row)
      grad_weights.push_back(like(arguments.gates.select(0, 0)));
    else
      d.for_each([&](const Tensor& w, std::string_view name) {  // b_hh has the gradient of b_ih
        if (w.defined() && name != "b_hh") grad_weights.push_back(like(w));
      });
  return {arguments.request.input ? like(call.input) : at::empty({0}, call.input.options()),
          like(call.h_0), like(call.c_0), grad_weights};
}

}  // namespace
}  // namespace fastlstm

TORCH_LIBRARY(fastlstm, m) {
  // Tensor roles and shapes: layer.h; no gradient reaches h_mask, zoneout_h, zoneout_c. Autograd
  // saves cells always, and gates unless recompute. engine: "auto" or the name of one.
  m.def(
      "lstm(Tensor input, Tensor h_0, Tensor c_0, Tensor[] weights, Tensor? batch_sizes=None, "
      "Tensor? lengths=None, Tensor? reset=None, Tensor? h_mask=None, Tensor? zoneout_h=None, "
      "Tensor? zoneout_c=None, bool save_cells=False, bool save_gates=False, "
      "bool recompute=False, str engine=\"auto\") -> (Tensor output, Tensor h_n, Tensor c_n, "
      "Tensor cells, Tensor gates)",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "lstm_backward(Tensor? grad_output, Tensor? grad_h_n, Tensor? grad_c_n, Tensor? grad_cells, "
      "Tensor input, Tensor h_0, Tensor c_0, Tensor[] weights, Tensor? batch_sizes, "
      "Tensor? lengths, Tensor? reset, Tensor? h_mask, Tensor? zoneout_h, Tensor? zoneout_c, "
      "Tensor output, Tensor cells, Tensor gates, "
      "bool input_needs_grad, bool state_needs_grad, str engine, bool per_row=False) "
      "-> (Tensor grad_input, Tensor grad_h_0, Tensor grad_c_0, Tensor[] grad_weights)",
      {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_IMPL(fastlstm, Meta, m) {
  m.impl("lstm", fastlstm::forward_op<fastlstm::lstm_meta>);
  m.impl("lstm_backward", fastlstm::backward_op<fastlstm::lstm_backward_meta>);
}
