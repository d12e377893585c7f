// The weights of one direction as a walk reads them.
#pragma once
#include <optional>

#include "core/layer.h"
#include "core/operators.h"
#include "cpu/gemm/encoded_rows.h"
#include "cpu/gemm/weight_format.h"

namespace fastlstm {

template <typename W>
struct PackedDirection {
  // The columns of the first two, and the bias, as pack_gates orders them.
  PackedMatrix<W> w_ih;                 // W_ih^T [I,4H]
  PackedMatrix<W> w_hh;                 // W_hh^T [P,4H]
  std::optional<PackedMatrix<W>> w_hr;  // W_hr^T [H,P]
  Tensor bias;                          // b_ih + b_hh in the state's dtype, or undefined
};

// Weights that are packed once are cut for up to four threads where threads share a step.
inline int64_t pieces_of(bool by_gates) { return by_gates ? 1 : 4; }

// The matrix of a weight W [rows,K] that pack_weight packed.
template <typename W>
PackedMatrix<W> view_packed(const Tensor& packed, int64_t rows, int64_t K, bool by_gates) {
  const PackedHeader found = PackedHeader::of(packed);
  const WeightFormat here = format_here<W>();
  TORCH_CHECK(found.format == here,
              "lstm_packed: expected weights that were packed for this processor (", here.text(),
              "), got some in ", found.format.text(), ": pack the model here");
  TORCH_CHECK(found.rows == rows && found.columns == K && found.by_gates == by_gates,
              "lstm_packed: expected a packed matrix [", rows, ", ", K, "]",
              by_gates ? " of gates" : "", ", got [", found.rows, ", ", found.columns, "]",
              found.by_gates ? " of gates" : "");
  const int64_t columns = by_gates ? gate_columns(rows / 4, here.lanes) : rows;
  return {K, columns, pieces_of(by_gates), packed, kHeaderBytes};
}

template <typename W>
PackedDirection<W> view_direction(const Direction& w, const Sizes& s) {
  const int64_t gates = 4 * s.hidden_size;
  PackedDirection<W> found{view_packed<W>(w.w_ih, gates, s.input_size, true),
                           view_packed<W>(w.w_hh, gates, s.output_size, true),
                           {},
                           order_gates<W>(w.b_ih, w.b_hh)};
  if (w.w_hr.defined())
    found.w_hr.emplace(view_packed<W>(w.w_hr, s.output_size, s.hidden_size, false));
  return found;
}

// Packs the weights for one call, W_hr for `unit_groups` groups of threads, unless they are packed.
template <typename T, typename W>
PackedDirection<W> pack_direction(const Layer& layer, int64_t d, int64_t unit_groups) {
  const Direction& w = layer.directions[d];
  if constexpr (!std::is_same_v<W, bfloat16x3>)  // in which no weights are packed before
    if (layer.has_packed_weights()) return view_direction<W>(w, layer.sizes());
  const auto encoded = [&](const Tensor& weight) { return encoded_weight<T, W>(weight); };
  PackedDirection<W> packed{pack_gates<W>(encoded(w.w_ih)), pack_gates<W>(encoded(w.w_hh)), {}, {}};
  if (w.w_hr.defined()) packed.w_hr.emplace(pack<W>(encoded(w.w_hr), true, unit_groups));
  if (w.b_ih.defined())
    packed.bias =
        order_gates<W>(w.b_ih.to(layer.state_options()), w.b_hh.to(layer.state_options()));
  return packed;
}

}  // namespace fastlstm
