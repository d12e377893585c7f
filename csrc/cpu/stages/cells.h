// The products of one step and the cell equations after them, for a worker's rows and units. This
// runs in one thread.
//
// A small buffer of accumulators receives the products for a few rows and a few vectors of units.
// Then the cell equations read these sums while they are in the L1 cache. Arithmetic limits the
// speed if there are many rows, and reading the weights if there are few.
//
// Gate order is the order of the columns of W_ih^T, W_hh^T and the bias in the forward pass, as an
// array [vectors of units][4 gates i, f, g, o][lanes].
#pragma once
#include <algorithm>
#include <optional>
#include <vector>

#include "core/layer_call.h"
#include "cpu/cell/cell.h"
#include "cpu/gemm/accumulators.h"
#include "cpu/gemm/prepacked.h"
#include "cpu/kernels.h"
#include "cpu/plan.h"
#include "cpu/rows.h"

namespace fastlstm {

// The weights of one direction in the form in which the forward pass reads them.
struct ForwardWeights {
  Matrix w_ih;                 // W_ih^T [I,4H], columns in gate order
  Matrix w_hh;                 // W_hh^T [P,4H], columns in gate order
  std::optional<Matrix> w_hr;  // W_hr^T [H,P], if the layer projects
  Scratch bias;                // b_ih + b_hh [4H] in gate order, in the state's dtype; or empty
};

// Returns a weight contiguous and in the dtype from which the kernels make their panels.
inline Tensor contiguous_source(const GemmKernels& gemm, const Tensor& w) {
  return as_dtype(w, unpacked_dtype(gemm.source_format)).contiguous();
}

// Returns b_ih + b_hh [4H] in gate order, in the dtype A of the state; empty if the layer has no
// bias. The last vector of units is filled up with zeros.
template <typename A>
Scratch bias_in_gate_order(const Direction& w, int64_t lanes) {
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

// Prepares the weights of direction d in the forms of the plan, or finds them in prepacked tensors.
// A: the dtype of the state.
template <typename A>
ForwardWeights forward_weights(const CpuPlan& plan, const LayerCall& layer, int64_t d) {
  const Direction& w = layer.directions[d];
  const GemmKernels& gemm = *plan.gemm;
  const Sizes s = layer.sizes();
  const auto gate_matrix = [&](const Tensor& weight, int64_t K, MatrixForm form) {
    return layer.is_prepacked()
               ? prepacked_matrix(gemm, weight, 4 * s.hidden_size, K, /*in_gate_order=*/true)
               : gate_matrix_of(gemm, contiguous_source(gemm, weight), form);
  };
  ForwardWeights weights{gate_matrix(w.w_ih, s.input_size, plan.w_ih),
                         gate_matrix(w.w_hh, s.output_size, plan.w_hh),
                         {},
                         bias_in_gate_order<A>(w, gemm.lanes)};
  if (w.w_hr.defined())
    weights.w_hr.emplace(
        layer.is_prepacked()
            ? prepacked_matrix(gemm, w.w_hr, s.output_size, s.hidden_size, /*in_gate_order=*/false)
            : matrix_of(gemm, contiguous_source(gemm, w.w_hr), true, plan.grid.unit_groups,
                        plan.w_hh));
  return weights;
}

// The forward products and cells of one worker. The object owns the accumulators.
template <typename T>
class CellsForward {
  using A = State_t<T>;

 public:
  CellsForward(const CpuPlan& plan, int64_t hidden_size)
      : plan_(plan),
        gemm_(*plan.gemm),
        hidden_size_(hidden_size),
        x_sums_(gemm_, plan.buffer_rows, 4 * vectors_at_once(1)),
        h_sums_(gemm_, plan.buffer_rows, 4 * vectors_at_once(1)) {}

  // Runs one step for a worker's rows and units.
  void run(const ForwardWeights& weights, const Worker& worker,
           const void* const* x,       // rows [I] of the input, or nullptr if the rows have x_gates
           const void* const* h_prev,  // rows [P] of h_{t-1}
           const ForwardRow<T>* rows, int64_t count,
           const void* zeros) {  // the row of zeros; products of only this row are skipped
    const Range own =
        part_of(divide_up(hidden_size_, gemm_.lanes), worker.unit_group, plan_.grid.unit_groups);
    const int64_t at_once = vectors_at_once(count), parts = divide_up(own.end - own.begin, at_once);
    reversed_ = !reversed_;
    for (int64_t i = 0; i < parts; ++i) {
      const int64_t first = own.begin + (reversed_ ? parts - 1 - i : i) * at_once;
      const Range vectors{first, std::min(first + at_once, own.end)};
      for (int64_t r = 0; r < count; r += h_sums_.rows())
        run_buffer(weights, vectors, x ? x + r : nullptr, h_prev + r, rows + r,
                   std::min(h_sums_.rows(), count - r), zeros);
    }
  }

 private:
  // Runs the products and the cells of as many rows and vectors of units as the accumulators hold.
  void run_buffer(const ForwardWeights& weights, const Range& vectors, const void* const* x,
                  const void* const* h_prev, const ForwardRow<T>* rows, int64_t count,
                  const void* zeros) {
    const Matrix &w_ih = weights.w_ih, &w_hh = weights.w_hh;
    const int64_t width = 4 * gemm_.lanes;  // the gates of a vector of units
    const A* bias = weights.bias.data<A>();
    if (bias) bias += vectors.begin * width;
    const A* from_x = nullptr;
    if (x)
      from_x = static_cast<const A*>(
          x_sums_.compute(w_ih, panels_of(w_ih, vectors), x, count, gemm_.kc, nullptr, bias));
    for (int64_t v = vectors.begin; v < vectors.end; ++v)
      cell_.prefetch_forward(rows, count, units(v));
    const A* from_h = static_cast<const A*>(
        h_sums_.compute(w_hh, panels_of(w_hh, vectors), h_prev, count, w_hh.K(), zeros));
    for (int64_t v = vectors.begin; v < vectors.end; ++v, from_h += width) {
      cell_.forward(rows, count, {from_h, h_sums_.stride(), from_x}, units(v));
      if (from_x) from_x += width;
    }
  }

  // Returns how many vectors of units the buffer holds for `rows` rows: as many as one call of the
  // micro-kernel multiplies, or more if the plan says so.
  int64_t vectors_at_once(int64_t rows) const {
    return std::max(plan_.buffer_unit_vectors,
                    gemm_.panels_at_once_for(rows) * gemm_.max_vectors / 4);
  }
  Range panels_of(const Matrix& weights, const Range& vectors) const {
    const int64_t panels_per_vector = 4 * gemm_.lanes / weights.width(0);
    return {vectors.begin * panels_per_vector, vectors.end * panels_per_vector};
  }
  Units units(int64_t vector) const {
    const int64_t unit = vector * gemm_.lanes;
    return {unit, std::min<int64_t>(gemm_.lanes, hidden_size_ - unit), hidden_size_};
  }

  const CpuPlan& plan_;
  const GemmKernels& gemm_;
  const CellKernels<T>& cell_ = *kernels<T>().cell;
  int64_t hidden_size_;
  // The order of the vectors changes from step to step, since the weights that were read last are
  // still in the L2 cache.
  bool reversed_ = true;
  Accumulators x_sums_, h_sums_;
};

// The rows of one step of the backward pass that one worker has.
template <typename T>
struct BackwardStepRows {
  explicit BackwardStepRows(int64_t max_rows)
      : gemm_rows(max_rows), d_h(max_rows), cell_rows(max_rows) {}
  // The encoded rows that the next product multiplies: d_gates of the next step in forward order,
  // or the row of zeros if that step gives no gradient. With a projection, encode_d_h replaces them
  // by dL/dh_t before the product with W_hr.
  std::vector<const void*> gemm_rows;
  std::vector<void*> d_h;  // with a projection: rows [P] of T that receive dL/dh_t
  std::vector<BackwardRow<T>> cell_rows;
  int64_t count = 0;  // the number of rows
};

// The backward product and cells of one worker. The product gives the gradient of o * tanh(c). It
// multiplies d_gates of the next step in forward order by W_hh or, with a projection, dL/dh_t by
// W_hr. The object owns the accumulators.
template <typename T>
class CellsBackward {
  using A = State_t<T>;

 public:
  // max_rows: the most rows of a step.
  CellsBackward(const Matrix& w_hh_or_hr, int64_t max_rows, int64_t hidden_size)
      : hidden_size_(hidden_size),
        sums_(w_hh_or_hr.gemm(),
              w_hh_or_hr.form() == MatrixForm::kPanels
                  ? std::min(round_up(kRowsAtOnce, w_hh_or_hr.gemm().tile_rows), max_rows)
                  : max_rows,
              w_hh_or_hr.max_group_width() / w_hh_or_hr.gemm().lanes) {}

  // Runs one step for a worker's rows and the units of some panels of w_hh_or_hr. `zeros`: the row
  // of zeros. If all gemm_rows in the buffer are this row, their product is skipped.
  void run(const Matrix& w_hh_or_hr, const Range& panels, const BackwardStepRows<T>& step,
           const void* zeros) {
    reversed_ = !reversed_;
    const auto run_group = [&](const Range& group) {
      const auto [begin, end] = w_hh_or_hr.columns(group);
      const Units units{begin, end - begin, hidden_size_};
      for (int64_t r = 0; r < step.count; r += sums_.rows()) {
        const int64_t n = std::min(sums_.rows(), step.count - r);
        const BackwardRow<T>* const rows = &step.cell_rows[r];
        cell_.prefetch_backward(rows, n, units);
        const auto* const sums = static_cast<const A*>(
            sums_.compute(w_hh_or_hr, group, &step.gemm_rows[r], n, kKc, zeros));
        cell_.backward(rows, n, sums, sums_.stride(), units);
      }
    };
    w_hh_or_hr.for_panel_groups(panels, step.count, run_group, reversed_);
  }

 private:
  // kRowsAtOnce limits the rows in the buffer if the weights are in panels. The rows of the buffer
  // are multiplied by kKc terms of a panel, which stay in the L2 cache, then by the next kKc terms.
  static constexpr int64_t kRowsAtOnce = 96, kKc = 1024;

  const CellKernels<T>& cell_ = *kernels<T>().cell;
  int64_t hidden_size_;
  bool reversed_ = true;  // as in CellsForward
  Accumulators sums_;
};

}  // namespace fastlstm
