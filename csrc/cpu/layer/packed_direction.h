// The weights of one direction as a walk reads them.
#pragma once
#include <algorithm>
#include <optional>

#include "core/layer.h"
#include "cpu/gemm/weight_format.h"
#include "cpu/plan.h"

namespace fastlstm {

struct PackedDirection {
  // The columns of the first two, and the bias, as pack_gates orders them.
  PackedMatrix w_ih;                 // W_ih^T [I,4H]
  PackedMatrix w_hh;                 // W_hh^T [P,4H]
  std::optional<PackedMatrix> w_hr;  // W_hr^T [H,P]
  Tensor bias;                       // b_ih + b_hh in the state's dtype, or undefined

  const void* bias_data() const { return bias.defined() ? bias.const_data_ptr() : nullptr; }
};

// Weights that are packed once are cut for up to four threads where threads share a step.
inline int64_t pieces_of(bool by_gates) { return by_gates ? 1 : 4; }

// A weight as `pack` takes it.
inline Tensor given_to(const Product& product, const Tensor& w) {
  return w.to(unpacked_dtype(product.given)).contiguous();
}

// b_ih + b_hh [4H] in the order of pack_gates; undefined if they are.
template <typename A>
Tensor order_gates(const Tensor& b_ih, const Tensor& b_hh, int64_t lanes) {
  if (!b_ih.defined()) return {};
  const int64_t hidden = b_ih.numel() / 4;
  const Tensor ordered = scratch<A>(gate_columns(hidden, lanes));
  const Tensor for_x = b_ih.contiguous(), for_h = b_hh.contiguous();
  const A *const from_x = const_data<A>(for_x), *const from_h = const_data<A>(for_h);
  A* to = data<A>(ordered);
  for (int64_t unit = 0; unit < hidden; unit += lanes)
    for (int64_t gate = 0; gate < 4; ++gate, to += lanes) {
      const A *const of_x = from_x + gate * hidden + unit, *const of_h = from_h + (of_x - from_x);
      const int64_t units = std::min(lanes, hidden - unit);
      for (int64_t k = 0; k < units; ++k) to[k] = of_x[k] + of_h[k];
      std::fill(to + units, to + lanes, A(0));
    }
  return ordered;
}

// The matrix of a weight W [rows,K] that pack_weight packed.
inline PackedMatrix view_packed(const Product& product, const Tensor& packed, int64_t rows,
                                int64_t K, bool by_gates) {
  const PackedHeader found = PackedHeader::of(packed);
  const WeightFormat here = format_here(product);
  TORCH_CHECK(found.format == here,
              "lstm_packed: expected weights that were packed for this processor (", here.text(),
              "), got some in ", found.format.text(), ": pack the model here");
  TORCH_CHECK(found.rows == rows && found.columns == K && found.by_gates == by_gates,
              "lstm_packed: expected a packed matrix [", rows, ", ", K, "]",
              by_gates ? " of gates" : "", ", got [", found.rows, ", ", found.columns, "]",
              found.by_gates ? " of gates" : "");
  const int64_t columns = by_gates ? gate_columns(rows / 4, here.lanes) : rows;
  return {product, K, columns, pieces_of(by_gates), packed, kHeaderBytes};
}

// A: the dtype of the state.
template <typename A>
PackedDirection view_direction(const Product& product, const Direction& w, const Sizes& s) {
  const int64_t gates = 4 * s.hidden_size;
  PackedDirection found{view_packed(product, w.w_ih, gates, s.input_size, true),
                        view_packed(product, w.w_hh, gates, s.output_size, true),
                        {},
                        order_gates<A>(w.b_ih, w.b_hh, product.lanes)};
  if (w.w_hr.defined())
    found.w_hr.emplace(view_packed(product, w.w_hr, s.output_size, s.hidden_size, false));
  return found;
}

// Packs the weights for one call, W_hr for `unit_groups` groups of threads, unless they are packed.
template <typename A>
PackedDirection pack_direction(const CpuPlan& plan, const Layer& layer, int64_t d,
                               int64_t unit_groups) {
  const Direction& w = layer.directions[d];
  const Product& product = *plan.product;
  if (layer.has_packed_weights()) return view_direction<A>(product, w, layer.sizes());
  PackedDirection packed{pack_gates(product, given_to(product, w.w_ih)),
                         pack_gates(product, given_to(product, w.w_hh)),
                         {},
                         {}};
  if (w.w_hr.defined())
    packed.w_hr.emplace(pack(product, given_to(product, w.w_hr), true, unit_groups));
  if (w.b_ih.defined())
    packed.bias = order_gates<A>(w.b_ih.to(layer.state_options()), w.b_hh.to(layer.state_options()),
                                 product.lanes);
  return packed;
}

}  // namespace fastlstm
