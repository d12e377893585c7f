// The stepwise engine forward, the same for every device: per step one GEMM through ATen and one
// fused kernel for the cell equations. It takes every dtype, shape and option; a device adds only
// struct StepKernels: run(step) for StepForward, StepBackward and their twins with layer
// normalization; AtenProducts will do for the rest. A CUDA graph can capture it.
#pragma once
#include <optional>

#include "core/flat_rows.h"
#include "stepwise/layer_norm.h"

namespace fastlstm {
namespace stepwise {

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

// The projection of a step in ATen: h_t = W_hr (o tanh(c)).
class Projection {
 public:
  Projection(const Layer& layer, int64_t d)
      : w_hr_(layer.directions[d].w_hr), live_(live_mask(layer)) {}

  // Projects `unprojected` [rows,H] into the step's outputs y_t and the state h_t [rows,P].
  template <typename Products>
  void forward(const WalkStep& at, const Tensor& unprojected, const Tensor& y_t,
               const Tensor& h_t) const {
    Tensor projected = at::empty_like(h_t);
    Products::multiply(unprojected, w_hr_, projected);
    const bool all_live = !live_.defined();
    y_t.copy_(all_live ? projected : projected.masked_fill(live_[at.t].logical_not(), 0));
    h_t.copy_(all_live ? projected : at::where(live_[at.t], projected, h_t));
  }

  // dL/d(o tanh(c)) of a step into d_unprojected [rows,H]. dh_t [rows,P] enters as dL/dh_t from the
  // steps after and leaves as zeros, but of a row that has ended; d_projected [rows,P] gets
  // dL/dh_t, which W_hr's gradient needs.
  void backward(const WalkStep& at, const Tensor& dy_t, const Tensor& dh_t, Tensor d_projected,
                Tensor d_unprojected) const {
    Tensor total = dy_t.defined() ? dh_t + dy_t : dh_t.clone();
    if (live_.defined()) total.masked_fill_(live_[at.t].logical_not(), 0);
    d_projected.copy_(total);
    at::mm_out(d_unprojected, total, w_hr_);
    if (live_.defined())
      dh_t.masked_fill_(live_[at.t], 0);
    else
      dh_t.zero_();
  }

 private:
  Tensor w_hr_, live_;
};

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
