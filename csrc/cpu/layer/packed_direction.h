// The weights of one direction as a walk reads them.
#pragma once
#include <optional>

#include "core/layer.h"
#include "core/operators.h"
#include "cpu/gemm/encoded_rows.h"
#include "cpu/gemm/packed_matrix.h"

namespace fastlstm {

template <typename W>
struct PackedDirection {
  // The columns of the first two, and the bias, as pack_gates orders them.
  PackedMatrix<W> w_ih;                 // W_ih^T [I,4H]
  PackedMatrix<W> w_hh;                 // W_hh^T [P,4H]
  std::optional<PackedMatrix<W>> w_hr;  // W_hr^T [H,P]
  Tensor bias;                          // b_ih + b_hh in the state's dtype, or undefined
};

// Packs the weights for one call. W_hr is cut for `unit_groups` groups of threads.
template <typename T, typename W>
PackedDirection<W> pack_direction(const Layer& layer, int64_t d, int64_t unit_groups) {
  const Direction& w = layer.directions[d];
  const auto encoded = [&](const Tensor& weight) { return encoded_weight<T, W>(weight); };
  PackedDirection<W> packed{pack_gates<W>(encoded(w.w_ih)), pack_gates<W>(encoded(w.w_hh)), {}, {}};
  if (w.w_hr.defined()) packed.w_hr.emplace(pack_transposed<W>(encoded(w.w_hr), unit_groups));
  if (w.b_ih.defined())
    packed.bias =
        order_gates<W>(w.b_ih.to(layer.state_options()) + w.b_hh.to(layer.state_options()));
  return packed;
}

enum class WeightRole { kToGates, kProjection };

// Weights that are packed once are cut for up to four threads where threads share a step.
inline int64_t pieces_of(WeightRole role) { return role == WeightRole::kProjection ? 4 : 1; }

// The matrix of a weight W [rows,K] that pack_weight packed.
template <typename W>
PackedMatrix<W> view_packed(const Tensor& packed, int64_t rows, int64_t K, WeightRole role) {
  check_memory(packed, "a packed weight");
  const int64_t lanes = product_of<W>().lanes;
  const bool by_gates = role == WeightRole::kToGates;
  const int64_t columns = by_gates ? gate_columns(rows / 4, lanes) : rows;
  return {K, columns, pieces_of(role), packed};
}

}  // namespace fastlstm
