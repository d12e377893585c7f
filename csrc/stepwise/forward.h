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

namespace fastlstm {
namespace stepwise {

// The walk of one direction: its steps, and what is alike in all passes over them.
class DirectionWalk {
 public:
  DirectionWalk(const Layer& layer, int64_t d)
      : layer_(layer),
        w_(layer.directions[d]),
        d_(d),
        sizes_(layer.sizes()),
        steps_(walk(layer, d == 1)),
        lengths_(contiguous_or_undefined(layer.lengths)),
        reset_(contiguous_or_undefined(layer.reset)) {}

  // A step that has nothing yet but the sizes and which rows take it.
  template <template <typename, typename> class S, typename T, typename A>
  S<T, A> begin(const WalkStep& at) const {
    S<T, A> step{};
    step.t = at.t, step.rows = at.rows, step.prev_rows = at.prev_rows;
    step.hidden_size = sizes_.hidden_size, step.reverse = d_ == 1;
    if (lengths_.defined()) step.lengths = const_data<int64_t>(lengths_);
    if (reset_.defined()) step.reset = const_data<bool>(reset_) + at.offset;
    return step;
  }

 protected:
  const Layer& layer_;
  const Direction& w_;
  int64_t d_;
  Sizes sizes_;
  std::vector<WalkStep> steps_;

 private:
  Tensor lengths_, reset_;
};

template <typename T, typename A, typename StepKernels>
class ForwardWalk : DirectionWalk {
 public:
  // x_gates [R,4H] holds the input's part, and in the end the activated gates.
  ForwardWalk(const Layer& layer, int64_t d, const ForwardTensors& to, const Tensor& x_gates)
      : DirectionWalk(layer, d),
        x_gates_(x_gates),
        h_gates_(at::empty({sizes_.batch, 4 * sizes_.hidden_size}, layer.input.options())),
        h_(to.h_n[d]),
        c_(to.c_n[d]),
        y_(flat(to.output, sizes_.flat_rows).narrow(1, d * sizes_.output_size, sizes_.output_size)),
        cells_(to.cells.defined() ? to.cells[d] : Tensor()),
        hidden_state_(h_) {
    if (layer.normalizes()) norms_.emplace(w_);
    if (!layer.projects()) return;
    projection_.emplace(layer, d);
    hidden_state_ = at::zeros({sizes_.batch, sizes_.hidden_size}, layer.input.options());
  }

  void run() {
    for (const WalkStep& at : steps_) {
      const Tensor h_t = h_.narrow(0, 0, at.rows);
      Tensor from_h = h_gates_.narrow(0, 0, at.rows);
      const Tensor seen =
          layer_.h_mask ? h_t * layer_.h_mask->select(0, d_).narrow(0, 0, at.rows) : h_t;
      StepKernels::multiply(seen, w_.w_hh, from_h);
      const StepForward<T, A> step = cells(at, from_h);
      if (norms_)
        StepKernels::run(norms_->forward(step));
      else
        StepKernels::run(step);
      if (projection_)
        projection_->template forward<StepKernels>(at, hidden_state_.narrow(0, 0, at.rows),
                                                   y_.narrow(0, at.offset, at.rows), h_t);
    }
  }

 private:
  StepForward<T, A> cells(const WalkStep& at, const Tensor& from_h) const {
    const int64_t hidden = sizes_.hidden_size, output_stride = y_.stride(0);
    auto step = begin<StepForward, T, A>(at);
    step.x_gates = step.gates = data<T>(x_gates_) + at.offset * 4 * hidden;
    step.h_gates = const_data<T>(from_h);
    step.c_state = data<A>(c_);
    step.cells = cells_.defined() ? data<A>(cells_) + at.offset * hidden : step.c_state;
    step.h_state = data<T>(hidden_state_);
    step.output = projection_ ? step.h_state : data<T>(y_) + at.offset * output_stride;
    step.output_stride = projection_ ? hidden : output_stride;
    return step;
  }

  Tensor x_gates_, h_gates_;
  Tensor h_, c_, y_, cells_;
  Tensor hidden_state_;  // o tanh(c), which is h where nothing is projected
  std::optional<StepNorms<T, A>> norms_;
  std::optional<Projection> projection_;
};

}  // namespace stepwise

template <typename T, typename A, typename StepKernels>
ForwardResult stepwise_forward(const Layer& layer, bool save_cells, bool save_gates) {
  const Sizes s = layer.sizes();
  const Tensor input = flat(layer.input, s.flat_rows);
  const ForwardTensors to(layer, save_cells, save_gates);
  for (int64_t d = 0; d < s.directions; ++d) {
    // Activated gates overwrite the pre-activations, saved or not.
    Tensor x_gates = save_gates
                         ? flat(to.gates[d], s.flat_rows)
                         : at::empty({s.flat_rows, 4 * s.hidden_size}, layer.input.options());
    stepwise::multiply_input<StepKernels>(layer, layer.directions[d], input, x_gates);
    stepwise::ForwardWalk<T, A, StepKernels>(layer, d, to, x_gates).run();
  }
  return to.result(layer);
}

}  // namespace fastlstm
