// The product outside the walk: the input's part of the gates.
#pragma once
#include "core/flat_rows.h"
#include "stepwise/layer_norm.h"

namespace fastlstm::stepwise {

// The products of a walk, to = rows W^T, as ATen makes them.
struct AtenProducts {
  static void multiply(const Tensor& rows, const Tensor& w, Tensor& to) {
    at::mm_out(to, rows, w.t());
  }
};

inline OptionalTensor bias_of(const Direction& w) {
  if (!w.b_ih.defined()) return std::nullopt;
  return w.b_hh.defined() ? w.b_ih + w.b_hh : w.b_ih;
}

// x W_ih^T + b of every flat row into x_gates [R,4H]; where the layer normalizes, LN(x W_ih^T) + b.
template <typename Products = AtenProducts>
void multiply_input(const Layer& layer, const Direction& w, const Tensor& input, Tensor& x_gates) {
  if (layer.normalizes()) {
    Products::multiply(input, w.w_ih, x_gates);
    x_gates.copy_(RowNorm(x_gates, w.gain_ih, bias_of(w)).y());
  } else if (layer.has_bias())
    at::addmm_out(x_gates, *bias_of(w), input, w.w_ih.t());
  else
    at::mm_out(x_gates, input, w.w_ih.t());
}

}  // namespace fastlstm::stepwise
