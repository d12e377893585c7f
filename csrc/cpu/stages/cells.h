// The products and then the cell equations of one step, for a worker's rows and units, in a thread.
//
// Accumulators receive the products for a few rows and a few vectors of units. Then the cell
// equations read these sums from the L1 cache. Arithmetic limits the speed if there are many rows,
// and reading the weights if there are few.
#pragma once
#include <c10/util/SmallVector.h>

#include <optional>

#include "cpu/gemm/prepacked.h"
#include "cpu/rows.h"

namespace fastlstm {

// The weights of one direction in the form in which the forward pass reads them.
struct ForwardWeights {
  GateOrder order;
  Matrix w_ih;                 // W_ih^T [I,4H], columns in gate order
  Matrix w_hh;                 // W_hh^T [P,4H], columns in gate order
  std::optional<Matrix> w_hr;  // W_hr^T [H,P], if the layer projects
  Scratch bias;                // b_ih + b_hh [4H] in gate order, in the state's dtype; or empty
};

// Returns a weight contiguous and in the dtype from which the kernels make their panels.
inline Tensor contiguous_source(const GemmKernels& gemm, const Tensor& w) {
  return as_dtype(w, unpacked_dtype(gemm.source_format)).contiguous();
}

// Returns ForwardWeights::bias, padded with zeros.
template <typename A>
Scratch bias_in_gate_order(const Direction& w, const GateOrder& order) {
  if (!w.b_ih.defined()) return {};
  constexpr auto dtype = c10::CppTypeToScalarType<A>::value;
  const Tensor b_ih = as_dtype(w.b_ih, dtype).contiguous();
  const Tensor b_hh = as_dtype(w.b_hh, dtype).contiguous();
  const A *const ih = const_data<A>(b_ih), *const hh = const_data<A>(b_hh);
  const int64_t hidden = order.hidden_size;
  Scratch ordered = scratch<A>(order.columns());
  A* to = ordered.data<A>();
  for (int64_t unit = 0; unit < hidden; unit += order.lanes)
    for (int64_t gate = 0; gate < 4; ++gate) {
      const int64_t lanes = order.lanes_at(unit), units = std::min(lanes, hidden - unit);
      const int64_t first = gate * hidden + unit;
      for (int64_t k = 0; k < units; ++k) to[k] = ih[first + k] + hh[first + k];
      to = std::fill_n(to + units, lanes - units, A(0));
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
  const bool in_place = plan.w_ih == MatrixForm::kInPlace || plan.w_hh == MatrixForm::kInPlace;
  const GateOrder order(gemm, s.hidden_size, in_place);
  const auto matrix = [&](const Tensor& weight, int64_t rows, int64_t K, MatrixForm form,
                          bool in_gate_order) {
    if (layer.is_prepacked()) return prepacked_matrix(gemm, weight, rows, K, in_gate_order);
    const Tensor source = contiguous_source(gemm, weight);
    return in_gate_order ? gate_matrix_of(gemm, source, order, form)
                         : matrix_of(gemm, source, true, plan.grid.unit_groups, form);
  };
  ForwardWeights weights{order,
                         matrix(w.w_ih, 4 * s.hidden_size, s.input_size, plan.w_ih, true),
                         matrix(w.w_hh, 4 * s.hidden_size, s.output_size, plan.w_hh, true),
                         {},
                         bias_in_gate_order<A>(w, order)};
  if (w.w_hr.defined())
    weights.w_hr.emplace(matrix(w.w_hr, s.output_size, s.hidden_size, plan.w_hh, false));
  return weights;
}

// Multiplies some rows by a few panels.
template <typename A>
class Accumulators {
 public:
  // `vectors`: the largest number of vectors of columns in one call of `compute`.
  Accumulators(const GemmKernels& gemm, int64_t rows, int64_t vectors)
      : stride_(vectors * gemm.lanes), sums_(scratch<A>(rows * stride_)), rows_(rows) {
    for (int64_t r = 0; r < rows; ++r) rows_[r] = sums_.data<A>() + r * stride_;
  }

  int64_t rows() const { return rows_.size(); }
  int64_t stride() const { return stride_; }  // elements from one row to the next

  // Returns the products [rows, stride()] of the rows `a` with neighboring panels, plus the bias if
  // it is not nullptr. `backwards`: see Destination. `zeros` is the address of the zero row. If all
  // rows are the zero row, the results are 0, without the bias and even if a weight is infinite.
  // Else 0 * infinity is NaN.
  const A* compute(const Matrix& matrix, const Range& panels, const void* const* a, int64_t rows,
                   int64_t kc, bool backwards, const void* zeros, const void* bias = nullptr) {
    if (std::all_of(a, a + rows, [zeros](const void* row) { return row == zeros; }))
      std::fill_n(sums_.data<A>(), rows * stride_, A(0));
    else
      matrix.multiply_panels(
          panels, a, rows, kc,
          {.rows = rows_.data(), .bias = bias, .whole_vectors = true, .backwards = backwards},
          buffer_);
    return sums_.data<A>();
  }

 private:
  int64_t stride_;
  Scratch sums_, buffer_;
  c10::SmallVector<void*, 16> rows_;
};

// The rows of one step that one worker has. Row: ForwardRow or BackwardRow.
template <typename Row>
struct StepRows {
  explicit StepRows(int64_t max_rows)
      : x(max_rows), gemm_rows(max_rows), h(max_rows), cell_rows(max_rows) {}
  c10::SmallVector<const void*, 8> x;  // forward: encoded rows [I], read if the rows lack x_gates
  // The encoded rows of the next product. Forward: h_{t-1}. Backward: d_gates_{t+1}, or zeros if
  // there is no gradient. With a projection encode_d_h then replaces them by dL/dh_t.
  c10::SmallVector<const void*, 8> gemm_rows;
  c10::SmallVector<void*, 8> h;  // with a projection: rows [P] of T that receive h_t or dL/dh_t
  c10::SmallVector<Row, 8> cell_rows;
  int64_t count = 0;  // the number of rows
};

// The forward products and cells of one worker.
template <typename T>
class CellsForward {
  using A = State_t<T>;

 public:
  CellsForward(const CpuPlan& plan, const Matrix& w_hh, int64_t hidden_size)
      : plan_(plan),
        hidden_size_(hidden_size),
        vectors_at_once_(
            std::max(plan.buffer_unit_vectors, w_hh.panels_at_once() * gemm_.max_vectors / 4)) {}

  // Runs one step for a worker's rows and units. `zeros`: as in Accumulators::compute.
  void run(const ForwardWeights& weights, const Worker& worker, const StepRows<ForwardRow<T>>& step,
           const void* zeros) {
    const Range worker_vectors =
        part_of(divide_up(hidden_size_, gemm_.lanes), worker.unit_group, plan_.grid.unit_groups);
    const int64_t parts = divide_up(worker_vectors.end - worker_vectors.begin, vectors_at_once_);
    backwards_ = !backwards_;
    for (int64_t i = 0; i < parts; ++i) {
      const int64_t first =
          worker_vectors.begin + (backwards_ ? parts - 1 - i : i) * vectors_at_once_;
      const Range vectors{first, std::min(first + vectors_at_once_, worker_vectors.end)};
      for (int64_t r = 0; r < step.count; r += h_sums_.rows())
        run_rows(weights, vectors, step, r, zeros);
    }
  }

 private:
  // Runs the products and cells of as many rows, from `first` on, as the accumulators hold.
  void run_rows(const ForwardWeights& weights, const Range& vectors,
                const StepRows<ForwardRow<T>>& step, int64_t first, const void* zeros) {
    const Matrix &w_ih = weights.w_ih, &w_hh = weights.w_hh;
    const int64_t width = 4 * gemm_.lanes;  // the gates of a vector of units
    const int64_t count = std::min(h_sums_.rows(), step.count - first);
    const ForwardRow<T>* const rows = &step.cell_rows[first];
    const A* bias = weights.bias.data<A>();
    if (bias) bias += vectors.begin * width;
    const A* from_x = nullptr;
    if (!rows->x_gates)
      from_x = x_sums_.compute(w_ih, panels_of(w_ih, vectors), &step.x[first], count, gemm_.kc,
                               backwards_, nullptr, bias);
    for (int64_t v = vectors.begin; v < vectors.end; ++v)
      kernels_.prefetch_forward(rows, count, units(v));
    const A* from_h = h_sums_.compute(w_hh, panels_of(w_hh, vectors), &step.gemm_rows[first], count,
                                      w_hh.K(), backwards_, zeros);
    for (int64_t v = vectors.begin; v < vectors.end; ++v, from_h += width) {
      const int64_t lanes = weights.order.lanes_at(v * gemm_.lanes);
      kernels_.forward(rows, count, {from_h, h_sums_.stride(), from_x, lanes}, units(v));
      if (from_x) from_x += width;
    }
  }

  Accumulators<A> accumulators() const { return {gemm_, plan_.buffer_rows, 4 * vectors_at_once_}; }
  Range panels_of(const Matrix& matrix, const Range& vectors) const {
    const int64_t panels_per_vector = 4 * gemm_.lanes / matrix.width(0);
    return {vectors.begin * panels_per_vector,
            std::min(vectors.end * panels_per_vector, matrix.panel_count())};
  }
  Units units(int64_t vector) const {
    const int64_t unit = vector * gemm_.lanes;
    return {unit, std::min<int64_t>(gemm_.lanes, hidden_size_ - unit), hidden_size_};
  }

  const CpuPlan& plan_;
  const GemmKernels& gemm_ = *plan_.gemm;
  const CellKernels<T>& kernels_ = *kernels<T>().cell_kernels;
  int64_t hidden_size_;
  // The vectors of units in the accumulators: at least as many as one call of the kernel computes.
  int64_t vectors_at_once_;
  // The order changes from step to step: the weights that were read last are still in the cache.
  bool backwards_ = false;
  Accumulators<A> x_sums_ = accumulators(), h_sums_ = accumulators();
};

// The backward product and cells of one worker. The product gives the gradient of o * tanh(c).
template <typename T>
class CellsBackward {
  using A = State_t<T>;

 public:
  CellsBackward(const Matrix& w_hh_or_hr, int64_t max_rows, int64_t hidden_size)
      : hidden_size_(hidden_size),
        sums_(w_hh_or_hr.gemm(),
              w_hh_or_hr.form() == MatrixForm::kPanels
                  ? std::min(round_up(kAccumulatorRows, w_hh_or_hr.gemm().tile_rows), max_rows)
                  : max_rows,
              w_hh_or_hr.max_group_width() / w_hh_or_hr.gemm().lanes) {}

  // Runs one step for a worker's rows and the units of some panels. `zeros`: see Accumulators.
  void run(const Matrix& w_hh_or_hr, const Range& panels, const StepRows<BackwardRow<T>>& step,
           const void* zeros) {
    const auto run_group = [&](const Range& group) {
      const auto [begin, end] = w_hh_or_hr.columns(group);
      const Units units{begin, end - begin, hidden_size_};
      for (int64_t r = 0; r < step.count; r += sums_.rows()) {
        const int64_t n = std::min(sums_.rows(), step.count - r);
        const BackwardRow<T>* const rows = &step.cell_rows[r];
        kernels_.prefetch_backward(rows, n, units);
        const A* const sums =
            sums_.compute(w_hh_or_hr, group, &step.gemm_rows[r], n, kKc, backwards_, zeros);
        kernels_.backward(rows, n, sums, sums_.stride(), units);
      }
    };
    backwards_ = !backwards_;
    w_hh_or_hr.for_panel_groups(panels, run_group, backwards_);
  }

 private:
  // Rows of the accumulators if the weights are in panels (rounded up to whole tiles), and KC.
  static constexpr int64_t kAccumulatorRows = 96, kKc = 1024;

  const CellKernels<T>& kernels_ = *kernels<T>().cell_kernels;
  int64_t hidden_size_;
  bool backwards_ = false;  // as in CellsForward
  Accumulators<A> sums_;
};

}  // namespace fastlstm
