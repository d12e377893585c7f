// The products of a step and the cells after them, for some rows and units, in one thread. A tile
// of sums at a time goes through a buffer in the L1 cache.
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

// The weights of one direction as the walk forward reads them.
struct ForwardWeights {
  // The columns of the first two, and the bias, as gates_of orders them.
  Matrix w_ih;                 // W_ih^T [I,4H]
  Matrix w_hh;                 // W_hh^T [P,4H]
  std::optional<Matrix> w_hr;  // W_hr^T [H,P]
  Scratch bias;                // b_ih + b_hh in the state's dtype, or empty
};

// A weight as a product packs it.
inline Tensor contiguous_source(const GemmKernels& gemm, const Tensor& w) {
  return as_dtype(w, unpacked_dtype(gemm.source_format)).contiguous();
}

// b_ih + b_hh [4H] in the order of gates_of; empty if they are undefined. A: the dtype of the
// state.
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

template <typename A>
ForwardWeights forward_weights(const CpuPlan& plan, const LayerCall& layer, int64_t d) {
  const Direction& w = layer.directions[d];
  const GemmKernels& gemm = *plan.gemm;
  const Sizes s = layer.sizes();
  const auto gates = [&](const Tensor& w, int64_t K, MatrixForm form) {
    if (layer.is_prepacked())
      return prepacked_matrix(gemm, w, 4 * s.hidden_size, K, /*in_gate_order=*/true);
    return gate_matrix_of(gemm, contiguous_source(gemm, w), form);
  };
  ForwardWeights matrices{gates(w.w_ih, s.input_size, plan.w_ih),
                          gates(w.w_hh, s.output_size, plan.w_hh),
                          {},
                          bias_in_gate_order<A>(w, gemm.lanes)};
  if (w.w_hr.defined())
    matrices.w_hr.emplace(
        layer.is_prepacked()
            ? prepacked_matrix(gemm, w.w_hr, s.output_size, s.hidden_size, /*in_gate_order=*/false)
            : matrix_of(gemm, contiguous_source(gemm, w.w_hr), true, plan.grid.unit_groups,
                        plan.w_hh));
  return matrices;
}

template <typename T>
class CellsForward {
  using A = State_t<T>;

 public:
  CellsForward(const CpuPlan& plan, int64_t hidden_size)
      : plan_(plan),
        gemm_(*plan.gemm),
        hidden_size_(hidden_size),
        x_sums_(gemm_, plan.buffer_rows, 4 * tiles_at_once(1)),
        sums_(gemm_, plan.buffer_rows, 4 * tiles_at_once(1)) {}

  // A tile is a vector of units; the tiles of one of `groups` groups of threads.
  Range tiles(int64_t group, int64_t groups) const {
    return part_of(divide_up(hidden_size_, gemm_.lanes), group, groups);
  }

  // Rows whose h_prev is `zeros` have nothing to multiply. With rows x of the input, the x_gates of
  // the rows are computed, else (nullptr) read.
  void run(const ForwardWeights& weights, const Range& tiles, const void* const* x,
           const void* const* h_prev, const ForwardRow<T>* rows, int64_t count, const void* zeros) {
    const Matrix &w_ih = weights.w_ih, &w_hh = weights.w_hh;
    const int64_t at_once = tiles_at_once(count);
    const int64_t turns = divide_up(tiles.end - tiles.begin, at_once);
    reversed_ = !reversed_;
    const auto tiles_of = [&](int64_t turn) {
      const int64_t first = tiles.begin + (reversed_ ? turns - 1 - turn : turn) * at_once;
      return Range{first, std::min(first + at_once, tiles.end)};
    };
    const A* const bias = weights.bias.data<A>();
    for (int64_t i = 0; i < turns; ++i) {
      const Range turn = tiles_of(i);
      for (int64_t r = 0; r < count; r += sums_.rows()) {
        const int64_t n = std::min(sums_.rows(), count - r);
        const A* from_x = nullptr;
        if (x)
          from_x = static_cast<const A*>(
              x_sums_.compute(w_ih, panels_of(w_ih, turn), x + r, n, gemm_.kc, nullptr,
                              bias ? bias + turn.begin * 4 * gemm_.lanes : nullptr));
        for (int64_t t = turn.begin; t < turn.end; ++t)
          cell_.prefetch_forward(rows + r, n, units(t));
        auto* h = static_cast<const A*>(
            sums_.compute(w_hh, panels_of(w_hh, turn), h_prev + r, n, w_hh.K(), zeros));
        for (int64_t t = turn.begin; t < turn.end; ++t) {
          cell_.forward(rows + r, n, {h, sums_.stride(), from_x}, units(t));
          h += 4 * gemm_.lanes, from_x += x ? 4 * gemm_.lanes : 0;
        }
      }
    }
  }

 private:
  int64_t tiles_at_once(int64_t rows) const {
    return std::max(plan_.buffer_unit_vectors,
                    gemm_.panels_at_once_for(rows) * gemm_.max_vectors / 4);
  }
  Range panels_of(const Matrix& weights, const Range& tiles) const {
    const int64_t in_tile = 4 * gemm_.lanes / weights.width(0);
    return {tiles.begin * in_tile, tiles.end * in_tile};
  }
  Units units(int64_t tile) const {
    const int64_t unit = tile * gemm_.lanes;
    return {unit, std::min<int64_t>(gemm_.lanes, hidden_size_ - unit), hidden_size_};
  }

  const CpuPlan& plan_;
  const GemmKernels& gemm_;
  const CellKernels<T>& cell_ = *kernels<T>().cell;
  int64_t hidden_size_;
  bool reversed_ = true;  // every other step: what was read last is still in the L2 cache
  Accumulators x_sums_, sums_;
};

// The rows of one step of the walk back that one thread has.
template <typename T>
struct BackwardStepRows {
  explicit BackwardStepRows(int64_t most) : gemm_rows(most), d_h(most), cells(most) {}
  std::vector<const void*> gemm_rows;  // of the step after, or `zeros` where none comes back
  std::vector<void*> d_h;              // with a projection, dL/dh_t in full, of T
  std::vector<BackwardRow<T>> cells;
  int64_t count = 0;
};

template <typename T>
class CellsBackward {
  using A = State_t<T>;

 public:
  // `through`: the matrix of `run`, of which a step has `rows` rows at most.
  CellsBackward(const Matrix& through, int64_t rows, int64_t hidden_size)
      : hidden_size_(hidden_size),
        sums_(through.gemm(),
              through.form() == MatrixForm::kPanels
                  ? std::min(round_up(kRows, through.gemm().tile_rows), rows)
                  : rows,
              through.max_group_width() / through.gemm().lanes) {}

  // `to_cells` takes the rows `from` to dL/d(o tanh(c)): W_hh and d_gates of the next step, or W_hr
  // and dL/dh_t.
  void run(const Matrix& to_cells, const Range& panels, const void* const* from,
           const BackwardRow<T>* rows, int64_t count, const void* zeros) {
    reversed_ = !reversed_;
    const auto through = [&](const Range& group) {
      const auto [begin, end] = to_cells.columns(group);
      const Units units{begin, end - begin, hidden_size_};
      for (int64_t r = 0; r < count; r += sums_.rows()) {
        const int64_t n = std::min(sums_.rows(), count - r);
        cell_.prefetch_backward(rows + r, n, units);
        const auto* const sums =
            static_cast<const A*>(sums_.compute(to_cells, group, from + r, n, kBackwardKc, zeros));
        cell_.backward(rows + r, n, sums, sums_.stride(), units);
      }
    };
    to_cells.for_panel_groups(panels, count, through, reversed_);
  }

 private:
  // A panel is cut along k so that a piece stays in the L2 cache while all rows pass.
  static constexpr int64_t kRows = 96, kBackwardKc = 1024;

  const CellKernels<T>& cell_ = *kernels<T>().cell;
  int64_t hidden_size_;
  bool reversed_ = true;  // as in CellsForward
  Accumulators sums_;
};

}  // namespace fastlstm
