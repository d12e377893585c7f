// The schemas of the ops, and their Meta kernels: the shapes of results, from symbolic sizes.
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>

#include "core/layer_call.h"
#include "core/operators.h"

namespace fastlstm {
namespace {

ForwardResult lstm_meta(LstmCall call, const ForwardOptions& options) {
  const LayerCall layer = check_layer(std::move(call), /*allows_prepacked=*/true);
  return ForwardTensors(layer, options).result(layer);
}

BackwardResult lstm_backward_meta(LstmCall call, const BackwardArguments& arguments) {
  const LayerCall layer = check_layer(std::move(call));
  check_backward(layer, arguments);
  const auto like = [](const Tensor& t) { return at::empty_symint(t.sym_sizes(), t.options()); };
  std::vector<Tensor> grad_weights;
  for (Direction gradients : layer.directions) {
    for_each_weight(gradients, [&](Tensor& w, const char*) { w = like(w); });
    if (arguments.request.return_d_gates)
      grad_weights.push_back(like(arguments.gates.select(0, 0)));
    else
      append_gradients(grad_weights, gradients);
  }
  return {arguments.request.input ? like(layer.input) : at::empty({0}, layer.input.options()),
          like(layer.h_0), like(layer.c_0), grad_weights};
}

}  // namespace

// LayerCall states the shapes of the tensors, WeightLayout explains `layout`, and `engine` is
// "auto" or the name of an engine. h_mask has no gradient. lstm_prepacked is a separate op because
// autograd and autocast must not touch prepacked weights.
TORCH_LIBRARY(fastlstm, m) {
  const std::vector<at::Tag> tags{at::Tag::pt2_compliant_tag};
  for (const std::string name : {"lstm", "lstm_prepacked"})
    m.def((name + "(Tensor input, Tensor h_0, Tensor c_0, Tensor[] weights, str layout=\"bias\", "
                  "Tensor? batch_sizes=None, Tensor? lengths=None, Tensor? reset=None, "
                  "Tensor? h_mask=None, bool save_cells=False, bool save_gates=False, "
                  "str engine=\"auto\") "
                  "-> (Tensor output, Tensor h_n, Tensor c_n, Tensor cells, Tensor gates)")
              .c_str(),
          tags);
  m.def(
      "lstm_backward(Tensor input, Tensor h_0, Tensor c_0, Tensor[] weights, str layout, "
      "Tensor? batch_sizes, Tensor? lengths, Tensor? reset, Tensor? h_mask, "
      "Tensor? grad_output, Tensor? grad_h_n, Tensor? grad_c_n, Tensor? grad_cells, "
      "Tensor output, Tensor cells, Tensor gates, bool input_needs_grad, bool state_needs_grad, "
      "bool return_d_gates=False, str engine=\"auto\") "
      "-> (Tensor grad_input, Tensor grad_h_0, Tensor grad_c_0, Tensor[] grad_weights)",
      tags);
}

TORCH_LIBRARY_IMPL(fastlstm, Meta, m) {
  m.impl("lstm", op<lstm_meta>);
  m.impl("lstm_backward", op<lstm_backward_meta>);
  m.impl("lstm_prepacked", op<lstm_meta>);
}
TORCH_LIBRARY_IMPL(fastlstm, Autograd, m) {
  m.impl("lstm_prepacked", torch::autograd::autogradNotImplementedFallback());
}

}  // namespace fastlstm
