// The weights of one direction as the walk forward reads them.
#pragma once
#include <algorithm>
#include <optional>

#include "core/layer.h"
#include "cpu/gemm/prepacked.h"
#include "cpu/layer/rows.h"
#include "cpu/plan.h"

namespace fastlstm {

struct Matrices {
  // The columns of the first two, and the bias, as gates_of orders them.
  Matrix w_ih;                 // W_ih^T [I,4H]
  Matrix w_hh;                 // W_hh^T [P,4H]
  std::optional<Matrix> w_hr;  // W_hr^T [H,P]
  Scratch bias;                // b_ih + b_hh in the state's dtype, or empty
};

// A weight as a product packs it.
inline Tensor given_to(const Product& product, const Tensor& w) {
  return as_dtype(w, unpacked_dtype(product.given)).contiguous();
}

// b_ih + b_hh [4H] in the order of gates_of; empty if they are undefined. A: the dtype of the
// state.
template <typename A>
Scratch ordered_bias(const Direction& w, int64_t lanes) {
  if (!w.b_ih.defined()) return {};
  constexpr auto dtype = c10::CppTypeToScalarType<A>::value;
  const Tensor b_ih = as_dtype(w.b_ih, dtype).contiguous();
  const Tensor b_hh = as_dtype(w.b_hh, dtype).contiguous();
  const A *const from_x = const_data<A>(b_ih), *const from_h = const_data<A>(b_hh);
  const int64_t hidden = b_ih.numel() / 4;
  Scratch ordered = scratch<A>(gate_columns(hidden, lanes));
  A* to = ordered.data<A>();
  for (int64_t unit = 0; unit < hidden; unit += lanes)
    for (int64_t gate = 0; gate < 4; ++gate, to += lanes) {
      const int64_t first = gate * hidden + unit, units = std::min(lanes, hidden - unit);
      for (int64_t k = 0; k < units; ++k) to[k] = from_x[first + k] + from_h[first + k];
      std::fill(to + units, to + lanes, A(0));
    }
  return ordered;
}

template <typename A>
Matrices matrices_of(const CpuPlan& plan, const Layer& layer, int64_t d) {
  const Direction& w = layer.directions[d];
  const Product& product = *plan.product;
  const Sizes s = layer.sizes();
  const auto gates = [&](const Tensor& w, int64_t K) {
    if (layer.is_prepacked())
      return prepacked_matrix(product, w, 4 * s.hidden_size, K, /*by_gates=*/true);
    return gates_of(product, given_to(product, w), plan.form);
  };
  Matrices found{gates(w.w_ih, s.input_size),
                 gates(w.w_hh, s.output_size),
                 {},
                 ordered_bias<A>(w, product.lanes)};
  if (w.w_hr.defined())
    found.w_hr.emplace(
        layer.is_prepacked()
            ? prepacked_matrix(product, w.w_hr, s.output_size, s.hidden_size, /*by_gates=*/false)
            : matrix_of(product, given_to(product, w.w_hr), true, plan.grid.unit_groups));
  return found;
}

}  // namespace fastlstm
