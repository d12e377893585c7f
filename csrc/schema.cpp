// The ops: their schemas, and their shapes on symbolic sizes (Meta).
#include <torch/library.h>

#include "layer.h"

namespace fastlstm {
namespace {

ForwardResult lstm_meta(const Tensor& input, const Tensor& h_0, const Tensor& c_0,
                        at::TensorList weights, const OptionalTensor& batch_sizes,
                        const OptionalTensor& lengths, const OptionalTensor& reset,
                        const OptionalTensor& h_mask, const OptionalTensor& zoneout_h,
                        const OptionalTensor& zoneout_c, bool save_cells, bool save_gates,
                        bool /*recompute*/, c10::string_view /*engine*/) {
  const Layer layer = check_layer(input, h_0, c_0, weights, batch_sizes, lengths, reset, h_mask,
                                  zoneout_h, zoneout_c);
  const c10::SymInt directions = layer.num_directions();
  // [T,B,size] or [R,size], with the directions in front for what is saved.
  const auto sequence = [&](c10::SymInt size, bool per_direction) {
    std::vector<c10::SymInt> shape;
    if (per_direction) shape.push_back(directions);
    if (layer.packed())
      shape.push_back(layer.flat_rows);
    else
      shape.insert(shape.end(), {layer.steps, layer.batch});
    shape.push_back(std::move(size));
    return shape;
  };
  const auto options = input.options();
  const auto saved = [&](bool save, const c10::SymInt& size, at::ScalarType dtype) {
    return at::empty_symint(save ? sequence(size, true) : std::vector<c10::SymInt>{0},
                            options.dtype(dtype));
  };
  return {at::empty_symint(sequence(directions * layer.output_size, false), options),
          at::empty_symint({directions, layer.batch, layer.output_size}, options),
          at::empty_symint({directions, layer.batch, layer.hidden_size}, options),
          saved(save_cells, layer.hidden_size, state_dtype(input.scalar_type())),
          saved(save_gates, 4 * layer.hidden_size, input.scalar_type())};
}

BackwardResult lstm_backward_meta(const OptionalTensor&, const OptionalTensor&,
                                  const OptionalTensor&, const OptionalTensor&, const Tensor& input,
                                  const Tensor& h_0, const Tensor& c_0, at::TensorList weights,
                                  const OptionalTensor& batch_sizes, const OptionalTensor& lengths,
                                  const OptionalTensor& reset, const OptionalTensor& h_mask,
                                  const OptionalTensor& zoneout_h, const OptionalTensor& zoneout_c,
                                  const Tensor&, const Tensor&, const Tensor& gates,
                                  bool input_needs_grad, bool /*state_needs_grad*/,
                                  c10::string_view, bool per_row) {
  const Layer layer = check_layer(input, h_0, c_0, weights, batch_sizes, lengths, reset, h_mask,
                                  zoneout_h, zoneout_c);
  const auto like = [](const Tensor& t) { return at::empty_symint(t.sym_sizes(), t.options()); };
  std::vector<Tensor> grad_weights;
  for (const Direction& d : layer.directions)
    if (per_row)
      grad_weights.push_back(like(gates.select(0, 0)));
    else
      for (const Tensor& w :
           {d.w_ih, d.w_hh, d.b_ih, d.w_hr, d.gain_ih, d.gain_hh, d.gain_c, d.bias_c})
        if (w.defined()) grad_weights.push_back(like(w));
  return {input_needs_grad ? like(input) : at::empty({0}, input.options()), like(h_0), like(c_0),
          grad_weights};
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
  m.impl("lstm", &fastlstm::lstm_meta);
  m.impl("lstm_backward", &fastlstm::lstm_backward_meta);
}
