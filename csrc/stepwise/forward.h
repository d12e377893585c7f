// The stepwise engine, forward: each step runs one GEMM of ATen and one kernel for the cell
// equations, and with a projection one more of each. It serves every dtype, shape and option, and a
// CUDA graph can capture it. A device provides StepKernels, a struct with a static function
// run(step) for each of the six kinds of steps in equations/.
#pragma once
#include "core/flat_rows.h"
#include "stepwise/layer_norm.h"

namespace fastlstm {
namespace stepwise {

// b_ih + b_hh [4H], if the layer has biases.
inline OptionalTensor bias_of(const Direction& w) {
  return w.b_ih.defined() ? OptionalTensor(w.b_ih + w.b_hh) : std::nullopt;
}

// Computes x_gates [R,4H] = x W_ih^T + b_ih + b_hh of the input [R,I]. With layer normalization
// x_gates = LN(x W_ih^T) gain_ih + b_ih + b_hh.
inline void multiply_input(const LayerCall& layer, const Direction& w, const Tensor& input,
                           Tensor& x_gates) {
  if (layer.has_bias() && !layer.normalizes())
    at::addmm_out(x_gates, *bias_of(w), input, w.w_ih.t());
  else
    at::mm_out(x_gates, input, w.w_ih.t());
  if (layer.normalizes()) x_gates.copy_(RowNorm(x_gates, w.gain_ih, bias_of(w)).y);
}

// The part of one direction's walk that forward and backward share.
class DirectionWalk {
 public:
  DirectionWalk(const LayerCall& layer, int64_t d)
      : layer_(layer),
        w_(layer.directions[d]),
        direction_(d),
        sizes_(layer.sizes()),
        steps_(walk(layer, d == 1)),
        lengths_(contiguous_or_undefined(layer.lengths)),
        reset_(contiguous_or_undefined(layer.reset)),
        h_mask_(layer.h_mask ? layer.h_mask->select(0, d).contiguous() : Tensor()) {
    for (Tensor* weight : {&w_.gain_hh, &w_.gain_c, &w_.bias_c})
      if (weight->defined()) *weight = weight->contiguous();
  }

  // Returns the arguments of a step that all kernels share, for rows of `size` units.
  Step step_arguments(const WalkStep& now, int64_t size) const {
    return {now.t,         now.rows,        size,
            now.prev_rows, direction_ == 1, data_or_null<int64_t>(lengths_),
            reset_at(&now)};
  }
  template <typename T>
  NormWeights<T> norm_weights() const {
    return {const_data<T>(w_.gain_hh), const_data<T>(w_.gain_c), const_data<T>(w_.bias_c)};
  }
  const bool* reset_at(const WalkStep* now) const {
    return now && reset_.defined() ? const_data<bool>(reset_) + now->offset : nullptr;
  }

 protected:
  const LayerCall& layer_;
  Direction w_;
  int64_t direction_;
  Sizes sizes_;
  std::vector<WalkStep> steps_;
  Tensor lengths_, reset_, h_mask_;
};

template <typename T, typename A, typename StepKernels>
class StepwiseForward : DirectionWalk {
 public:
  // x_gates [R,4H] holds the input's part of the gates. run() replaces it by the activated gates.
  StepwiseForward(const LayerCall& layer, int64_t d, const ForwardTensors& tensors,
                  const Tensor& x_gates)
      : DirectionWalk(layer, d),
        x_gates_(x_gates),
        h_gates_(at::empty({sizes_.batch, 4 * sizes_.hidden_size}, layer.input.options())),
        h_(tensors.h_n[d]),
        c_(tensors.c_n[d]),
        h_masked_(h_mask_.defined() ? h_ * h_mask_ : h_),
        output_(flat(tensors.output, sizes_.flat_rows)
                    .narrow(1, d * sizes_.output_size, sizes_.output_size)),
        cells_(tensors.cells.defined() ? tensors.cells[d] : Tensor()) {
    if (!layer.projects()) return;
    unprojected_ = at::zeros({sizes_.batch, sizes_.hidden_size}, layer.input.options());
    projected_ = at::empty_like(h_);
  }

  void run() {
    const Tensor w_hh = w_.w_hh.t(), w_hr = layer_.projects() ? w_.w_hr.t() : Tensor();
    MovingRows h_gates(h_gates_), h_masked(h_masked_), unprojected(unprojected_),
        projected(projected_);
    for (const WalkStep& now : steps_) {
      at::mm_out(h_gates.at(0, now.rows), h_masked.at(0, now.rows), w_hh);
      const ForwardStep<T, A> step = cell_step(now);
      if (layer_.normalizes())
        StepKernels::run(NormForwardStep<T, A>{step, norm_weights<T>()});
      else
        StepKernels::run(step);
      if (!layer_.projects()) continue;
      at::mm_out(projected.at(0, now.rows), unprojected.at(0, now.rows), w_hr);
      StepKernels::run(ProjectionForwardStep<T, A>{hidden_output(now), const_data<T>(projected_)});
    }
  }

 private:
  HiddenOutput<T> hidden_output(const WalkStep& now) const {
    HiddenOutput<T> step{};
    static_cast<Step&>(step) = step_arguments(now, sizes_.output_size);
    step.h_state = data<T>(h_), step.h_masked = data<T>(h_masked_);
    step.h_mask = data_or_null<T>(h_mask_);
    step.output_stride = output_.stride(0);
    step.output = data<T>(output_) + now.offset * step.output_stride;
    return step;
  }

  ForwardStep<T, A> cell_step(const WalkStep& now) const {
    const int64_t hidden = sizes_.hidden_size;
    ForwardStep<T, A> step{};
    static_cast<HiddenOutput<T>&>(step) = hidden_output(now);
    if (layer_.projects()) {
      step.h_state = step.output = data<T>(unprojected_), step.h_mask = nullptr;
      step.hidden_size = step.output_stride = hidden;
    }
    step.x_gates = step.gates = data<T>(x_gates_) + now.offset * 4 * hidden;
    step.h_gates = const_data<T>(h_gates_);
    step.c_state = data<A>(c_);
    step.cells = cells_.defined() ? data<A>(cells_) + now.offset * hidden : step.c_state;
    return step;
  }

  Tensor x_gates_, h_gates_;
  Tensor h_, c_;                    // [B,P], [B,H] the state
  Tensor h_masked_;                 // [B,P] h_mask * h, which W_hh multiplies; h_ without h_mask
  Tensor output_, cells_;           // [R,P] columns of `output`, [R,H]
  Tensor unprojected_, projected_;  // with a projection: o tanh(c) [B,H], W_hr (o tanh(c)) [B,P]
};

}  // namespace stepwise

template <typename T, typename A, typename StepKernels>
ForwardResult stepwise_forward(const LayerCall& layer, const ForwardOptions& options) {
  const Sizes s = layer.sizes();
  const Tensor input = flat(layer.input, s.flat_rows);
  const ForwardTensors tensors(layer, options);
  for (int64_t d = 0; d < s.directions; ++d) {
    Tensor x_gates = options.save_gates
                         ? flat(tensors.gates[d], s.flat_rows)
                         : at::empty({s.flat_rows, 4 * s.hidden_size}, layer.input.options());
    stepwise::multiply_input(layer, layer.directions[d], input, x_gates);
    stepwise::StepwiseForward<T, A, StepKernels>(layer, d, tensors, x_gates).run();
  }
  return tensors.result(layer);
}

}  // namespace fastlstm
