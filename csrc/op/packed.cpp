// The op of packed weights: its schema, its shapes on symbolic sizes (Meta), and that it has no
// gradient.
#include "core/packed.h"

#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>

#include "core/layer.h"
#include "core/operators.h"

namespace fastlstm {
namespace {

template <PackedResult (*function)(const LstmCall&, const PackedOptions&)>
PackedResult packed_op(const Tensor& input, const Tensor& h_0, const Tensor& c_0,
                       at::TensorList weights, c10::string_view layout,
                       const OptionalTensor& batch_sizes, const OptionalTensor& lengths,
                       const OptionalTensor& reset, bool save_cells) {
  const OptionalTensor none;
  return function({input, h_0, c_0, weights, batch_sizes, lengths, reset, none, none, none},
                  {layout, save_cells});
}

PackedResult lstm_packed_meta(const LstmCall& call, const PackedOptions& options) {
  const Layer layer = check_packed_layer(call);
  const c10::SymInt directions = layer.num_directions();
  const auto of = call.input.options();
  return {at::empty_symint(layer.sequence(directions * layer.output_size, false), of),
          at::empty_symint({directions, layer.batch, layer.output_size}, of),
          at::empty_symint({directions, layer.batch, layer.hidden_size}, call.c_0.options()),
          at::empty_symint(options.save_cells ? layer.sequence(layer.hidden_size, true)
                                              : std::vector<c10::SymInt>{0},
                           layer.state_options())};
}

}  // namespace
}  // namespace fastlstm

TORCH_LIBRARY_FRAGMENT(fastlstm, m) {
  m.def(
      "lstm_packed(Tensor input, Tensor h_0, Tensor c_0, Tensor[] weights, str layout, "
      "Tensor? batch_sizes=None, Tensor? lengths=None, Tensor? reset=None, bool save_cells=False) "
      "-> (Tensor output, Tensor h_n, Tensor c_n, Tensor cells)",
      {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_IMPL(fastlstm, Meta, m) {
  m.impl("lstm_packed", fastlstm::packed_op<fastlstm::lstm_packed_meta>);
}
TORCH_LIBRARY_IMPL(fastlstm, CPU, m) {
  m.impl("lstm_packed", fastlstm::packed_op<fastlstm::lstm_packed_cpu>);
}
TORCH_LIBRARY_IMPL(fastlstm, Autograd, m) {
  m.impl("lstm_packed", torch::autograd::autogradNotImplementedFallback());
}
