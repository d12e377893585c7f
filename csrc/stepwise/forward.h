// The stepwise engine forward, the same for every device: per step one GEMM through ATen and one
// fused kernel for the cell equations. It takes every dtype, shape and option; a device adds only
// struct StepKernels: run(step) for StepForward, StepBackward and their twins with layer
// normalization; AtenProducts will do for the rest. A CUDA graph can capture it.
#pragma once
#include <optional>

#include "core/flat_rows.h"
#include "stepwise/input.h"
#include "stepwise/layer_norm.h"
#include "stepwise/projection.h"
#include "stepwise/zoneout.h"

namespace fastlstm {
namespace stepwise {

inline Step step_of(const Layer& layer, const WalkStep& at, bool reverse, const Tensor& lengths,
                    const Tensor& reset) {
  return {at.t,
          at.rows,
          layer.hidden_size.expect_int(),
          at.prev_rows,
          reverse,
          lengths.defined() ? lengths.const_data_ptr<int64_t>() : nullptr,
          reset.defined() ? reset.const_data_ptr<bool>() + at.offset : nullptr};
}

// The walk of one direction.
template <typename T, typename A, typename StepKernels>
class ForwardWalk {
 public:
  // x_gates [R,4H] holds the input's part, and in the end the activated gates.
  ForwardWalk(const Layer& layer, int64_t d, const ForwardTensors& to, const Tensor& x_gates)
      : layer_(layer),
        d_(d),
        sizes_(layer.sizes()),
        lengths_(contiguous_or_undefined(layer.lengths)),
        reset_(contiguous_or_undefined(layer.reset)),
        zoneout_(layer),
        x_gates_(x_gates),
        h_gates_(at::empty({sizes_.batch, 4 * sizes_.hidden_size}, layer.input.options())),
        h_(to.h_n[d]),
        c_(to.c_n[d]),
        y_(flat(to.output, sizes_.flat_rows).narrow(1, d * sizes_.output_size, sizes_.output_size)),
        cells_(to.cells.size(0) ? to.cells[d] : Tensor()),
        hidden_state_(h_) {
    const Direction& w = layer.directions[d];
    if (layer.normalizes()) norms_.emplace(w, sizes_.batch);
    if (!layer.projects()) return;
    projection_.emplace(layer, d);
    hidden_state_ = at::zeros({sizes_.batch, sizes_.hidden_size}, layer.input.options());
  }

  void run() {
    for (const WalkStep& at : walk(layer_, d_ == 1)) {
      const Tensor h_t = h_.narrow(0, 0, at.rows);
      const StepForward<T, A> step = prepare(at, h_t);
      if (norms_)
        StepKernels::run(norms_->forward(step));
      else
        StepKernels::run(step);
      if (projection_)
        projection_->template forward<StepKernels>(at, hidden_state_.narrow(0, 0, at.rows),
                                                   y_.narrow(0, at.offset, at.rows), h_t);
    }
  }

  // A step whose product with h [rows,P] is done.
  StepForward<T, A> prepare(const WalkStep& at, const Tensor& h) {
    Tensor from_h = h_gates_.narrow(0, 0, at.rows);
    StepKernels::multiply(masked(h), layer_.directions[d_].w_hh, from_h);
    return cells(at, from_h);
  }

 private:
  Tensor masked(const Tensor& h_t) const {
    return layer_.h_mask ? h_t * layer_.h_mask->select(0, d_).narrow(0, 0, h_t.size(0)) : h_t;
  }

  StepForward<T, A> cells(const WalkStep& at, const Tensor& from_h) const {
    const int64_t hidden = sizes_.hidden_size, output_stride = y_.stride(0);
    StepForward<T, A> step;
    static_cast<Step&>(step) = step_of(layer_, at, d_ == 1, lengths_, reset_);
    step.x_gates = step.gates = data<T>(x_gates_) + at.offset * 4 * hidden;
    step.h_gates = const_data<T>(from_h);
    step.c_state = data<A>(c_);
    step.cells = cells_.defined() ? data<A>(cells_) + at.offset * hidden : step.c_state;
    step.h_state = data<T>(hidden_state_);
    step.output = projection_ ? step.h_state : data<T>(y_) + at.offset * output_stride;
    step.output_stride = projection_ ? hidden : output_stride;
    step.zoneout = zoneout_.at(d_, at);
    return step;
  }

  const Layer& layer_;
  int64_t d_;
  Sizes sizes_;
  Tensor lengths_, reset_;
  ZoneoutRows<T> zoneout_;
  Tensor x_gates_, h_gates_;
  Tensor h_, c_, y_, cells_;
  Tensor hidden_state_;  // o tanh(c), which is h where nothing is projected
  std::optional<StepNorms<T, A>> norms_;
  std::optional<Projection> projection_;
};

}  // namespace stepwise

// gates, as they are saved, or undefined: memory for them, which holds the input's part
// (multiply_input) of the first `multiplied` directions already.
template <typename T, typename A, typename StepKernels>
ForwardResult stepwise_forward(const Layer& layer, bool save_cells, bool save_gates,
                               const Tensor& gates = {}, int64_t multiplied = 0) {
  const Sizes s = layer.sizes();
  const Tensor input = flat(layer.input, s.flat_rows);
  ForwardTensors to(layer, save_cells, save_gates && !gates.defined());
  if (gates.defined()) to.gates = gates;
  for (int64_t d = 0; d < s.directions; ++d) {
    // Activated gates overwrite the pre-activations, saved or not.
    Tensor x_gates = to.gates.size(0)
                         ? flat(to.gates[d], s.flat_rows)
                         : at::empty({s.flat_rows, 4 * s.hidden_size}, layer.input.options());
    if (d >= multiplied)
      stepwise::multiply_input<StepKernels>(layer, layer.directions[d], input, x_gates);
    stepwise::ForwardWalk<T, A, StepKernels>(layer, d, to, x_gates).run();
  }
  if (!save_gates) to.gates = at::empty({0}, layer.input.options());
  return to.result(layer);
}

}  // namespace fastlstm
