// The stepwise engine, backward: the steps of the forward walk in opposite order, with the kernels
// and GEMMs of each. Then GEMMs over all steps give the gradients of the weights and the input.
#pragma once

#include "stepwise/forward.h"

namespace fastlstm {
namespace stepwise {

// The tensors of a backward call as flat rows: what both directions read, and the gradients.
struct BackwardTensors {
  const LayerCall& layer;
  const GradientRequest request;
  const Sizes sizes;
  Tensor input;                      // [R,I], 0 after the end of each row
  Tensor output, d_output;           // [R,D*P]; d_output may be undefined
  Tensor cells, d_cells;             // [D,R,H] in state_dtype; d_cells may be undefined
  Tensor gates;                      // [D,R,4H]
  Tensor c_0;                        // [D,B,H] in state_dtype
  Tensor grad_input;                 // [R,I], or empty if it is not requested
  Tensor grad_h_0, grad_c_0;         // [D,B,P], [D,B,H]; begin as the gradients of h_n, c_n
  std::vector<Tensor> grad_weights;  // in the order of BackwardResult

  BackwardTensors(const LayerCall& layer, const BackwardArguments& in)
      : layer(layer), request(in.request), sizes(layer.sizes()) {
    const int64_t D = sizes.directions, R = sizes.flat_rows, H = sizes.hidden_size;
    const auto options = layer.input.options(), state_options = layer.state_options();
    input = flat(without_padding(layer, layer.input), R);
    output = flat(in.output, R);
    cells = in.cells.contiguous().view({D, R, H});
    gates = in.gates.contiguous().view({D, R, 4 * H});
    if (in.grad_output) d_output = flat(*in.grad_output, R);
    if (in.grad_cells) d_cells = in.grad_cells->contiguous().view({D, R, H});
    c_0 = layer.c_0.to(state_options).contiguous();
    grad_input = request.input ? at::empty({R, input.size(1)}, options) : at::empty({0}, options);
    grad_h_0 = final_state_gradient(in.grad_h_n, layer.h_0, options);
    grad_c_0 = final_state_gradient(in.grad_c_n, layer.c_0, state_options);
  }

  Tensor columns_of(const Tensor& rows, int64_t d) const {
    return rows.narrow(1, d * sizes.output_size, sizes.output_size);
  }

  // Appends the gradients of one direction's weights, and adds the direction's part of grad_input.
  // Direction 0 comes first. Without layer normalization the first three tensors are the same.
  //   d_gates    [R,4H] the gradient of the pre-activations
  //   d_x_gates  [R,4H] the gradient of W_ih x
  //   d_h_gates  [R,4H] the gradient of W_hh h_{t-1}
  //   h_prev()   [R,P]  returns the rows that W_hh multiplied
  //   grads      the gradients of the other weights; those of W_ih, W_hh and b_ih are added here
  void add_gradients(const Direction& w, const Tensor& d_gates, const Tensor& d_x_gates,
                     const Tensor& d_h_gates, const auto& h_prev, Direction grads = {}) {
    const bool is_first_direction = grad_weights.empty();
    if (request.input && is_first_direction) at::mm_out(grad_input, d_x_gates, w.w_ih);
    if (request.input && !is_first_direction) grad_input.addmm_(d_x_gates, w.w_ih);
    if (request.return_d_gates)
      return grad_weights.push_back(
          d_gates.view_symint(layer.sequence_shape(4 * sizes.hidden_size, false)));
    grads.w_ih = at::mm(d_x_gates.t(), input);
    grads.w_hh = at::mm(d_h_gates.t(), h_prev());
    if (layer.has_bias()) grads.b_ih = d_gates.sum(0);
    append_gradients(grad_weights, grads);
  }

  BackwardResult result() const {
    return {request.input ? grad_input.view(layer.input.sizes()) : grad_input, grad_h_0,
            grad_c_0.to(layer.c_0.scalar_type()), grad_weights};
  }
};

template <typename T, typename A, typename StepKernels>
class StepwiseBackward : DirectionWalk {
 public:
  // d_gates [R,4H] receives the gradients of the pre-activations.
  StepwiseBackward(BackwardTensors& tensors, int64_t d, const Tensor& d_gates)
      : DirectionWalk(tensors.layer, d),
        tensors_(tensors),
        d_gates_(d_gates),
        gates_(tensors.gates[d]),
        cells_(tensors.cells[d]),
        h_prev_(multiplied_hidden(layer_, d, tensors.columns_of(tensors.output, d))),
        zero_row_(at::zeros({1, sizes_.hidden_size}, layer_.input.options())),
        d_output_(tensors.d_output.defined() ? tensors.columns_of(tensors.d_output, d) : zero_row_),
        d_cells_(tensors.d_cells.defined()
                     ? tensors.d_cells[d]
                     : at::zeros({1, sizes_.hidden_size}, layer_.state_options())),
        dh_(tensors.grad_h_0[d]),
        dc_(tensors.grad_c_0[d]) {
    if (layer_.normalizes()) norms_.emplace(w_, h_prev_, cells_);
    if (layer_.projects()) {
      d_hidden_ = at::empty({sizes_.batch, sizes_.hidden_size}, layer_.input.options());
      d_projected_ = at::empty({sizes_.flat_rows, sizes_.output_size}, layer_.input.options());
    }
  }

  void run() {
    MovingRows dh(dh_), d_h_gates(grad_h_gates()), d_hidden(d_hidden_), d_projected(d_projected_);
    const WalkStep* after = nullptr;
    for (auto now = steps_.rbegin(); now != steps_.rend(); after = &*now++) {
      if (layer_.projects()) {
        StepKernels::run(
            ProjectionBackwardStep<T, A>{hidden_gradient(*now, after),
                                         data<T>(d_projected_) + now->offset * sizes_.output_size});
        at::mm_out(d_hidden.at(0, now->rows), d_projected.at(now->offset, now->rows), w_.w_hr);
      }
      const BackwardStep<T, A> step = cell_step(*now, after);
      if (norms_)
        StepKernels::run(norms_->step(step, norm_weights<T>(), now->offset));
      else
        StepKernels::run(step);
      // At the first step of the walk the GEMM gives dL/dh_0, which may not be requested.
      if (tensors_.request.state || now->prev_rows != 0)
        dh.at(0, now->rows).addmm_(d_h_gates.at(now->offset, now->rows), w_.w_hh);
    }
    if (tensors_.request.state) mask_grad_h_0();
  }

  void add_gradients() {
    Tensor d_x_gates = d_gates_;
    Direction grads;
    if (norms_) d_x_gates = norms_->gradients(tensors_.input, bias_of(w_), d_gates_, grads);
    if (layer_.projects() && !tensors_.request.return_d_gates)
      grads.w_hr = at::mm(d_projected_.t(), unprojected());
    tensors_.add_gradients(w_, d_gates_, d_x_gates, grad_h_gates(), [&] { return h_prev_; }, grads);
  }

 private:
  // The gradient [R,4H] of W_hh h_{t-1}.
  const Tensor& grad_h_gates() const { return norms_ ? norms_->d_h_gates() : d_gates_; }

  // Returns o tanh(c) of all rows [R,H], 0 after the end of each row.
  Tensor unprojected() const {
    const Tensor c = norms_ ? norms_->normed_cells() : cells_;
    const Tensor o = gates_.narrow(1, 3 * sizes_.hidden_size, sizes_.hidden_size);
    const Tensor h = hidden_state(o.to(c.scalar_type()), c).to(layer_.input.scalar_type());
    const auto sequence = layer_.sequence_shape(sizes_.hidden_size, /*per_direction=*/false);
    return without_padding(layer_, h.view_symint(sequence)).view(h.sizes());
  }

  // The row stride of a gradient; 0 for a single row, which the kernel reads for every row.
  static int64_t stride_of(const Tensor& rows) { return rows.size(0) == 1 ? 0 : rows.stride(0); }

  HiddenGradientInput<T> hidden_gradient(const WalkStep& now, const WalkStep* after) const {
    HiddenGradientInput<T> step{};
    static_cast<Step&>(step) = step_arguments(now, sizes_.output_size);
    step.dh_state = data<T>(dh_), step.h_mask = data_or_null<T>(h_mask_);
    step.rows_after = after ? after->rows : 0, step.reset_after = reset_at(after);
    step.d_output_stride = stride_of(d_output_);
    step.d_output = const_data<T>(d_output_) + now.offset * step.d_output_stride;
    return step;
  }

  BackwardStep<T, A> cell_step(const WalkStep& now, const WalkStep* after) const {
    const int64_t hidden = sizes_.hidden_size;
    BackwardStep<T, A> step{};
    static_cast<HiddenGradientInput<T>&>(step) = hidden_gradient(now, after);
    if (layer_.projects()) {  // rows_after 0: h_mask and reset were applied to d_projected_ already
      step.hidden_size = hidden, step.rows_after = 0, step.dh_state = data<T>(d_hidden_);
      step.d_output = const_data<T>(zero_row_), step.d_output_stride = 0;
    }
    step.gates = const_data<T>(gates_) + now.offset * 4 * hidden;
    step.cells = const_data<A>(cells_) + now.offset * hidden;
    step.prev_cells = const_data<A>(cells_) + now.prev_offset * hidden;
    step.c_0 = const_data<A>(tensors_.c_0) + direction_ * sizes_.batch * hidden;
    step.d_cells_stride = stride_of(d_cells_);
    step.d_cells = const_data<A>(d_cells_) + now.offset * step.d_cells_stride;
    step.dc_state = data<A>(dc_);
    step.d_gates = data<T>(d_gates_) + now.offset * 4 * hidden;
    return step;
  }

  // Turns dh_ into dL/dh_0: multiplies it by h_mask, and sets it to 0 if the first step of the walk
  // over a row resets the row. A row of length 0 keeps dL/dh_n.
  void mask_grad_h_0() {
    const OptionalTensor& lengths = layer_.lengths;
    if (h_mask_.defined())
      dh_.mul_(lengths ? h_mask_.masked_fill(lengths->eq(0).unsqueeze(1), 1) : h_mask_);
    if (!reset_.defined()) return;
    Tensor reset = reset_[steps_[0].t];
    if (lengths && direction_ == 1)
      reset = reset_.gather(0, (*lengths - 1).clamp(0, sizes_.steps - 1).unsqueeze(0))[0];
    if (lengths) reset = reset.logical_and(lengths->gt(0));
    dh_.masked_fill_(reset.unsqueeze(1), 0);
  }

  BackwardTensors& tensors_;
  Tensor d_gates_, gates_, cells_, h_prev_;
  Tensor zero_row_;            // [1,H] zeros
  Tensor d_output_, d_cells_;  // [R,P], [R,H]; one row of zeros if the gradient was not given
  Tensor dh_, dc_;             // [B,P], [B,H] the gradient of the state
  // With a projection:
  Tensor d_hidden_;     // [B,H] the gradient of o tanh(c) of one step
  Tensor d_projected_;  // [R,P] dL/dh
  std::optional<NormsBackward<T, A>> norms_;
};

}  // namespace stepwise

template <typename T, typename A, typename StepKernels>
BackwardResult stepwise_backward(const LayerCall& layer, const BackwardArguments& in) {
  stepwise::BackwardTensors tensors(layer, in);
  Tensor d_gates;
  for (int64_t d = 0; d < tensors.sizes.directions; ++d) {
    if (d == 0 || tensors.request.return_d_gates)
      d_gates = at::empty({tensors.sizes.flat_rows, 4 * tensors.sizes.hidden_size},
                          layer.input.options());
    stepwise::StepwiseBackward<T, A, StepKernels> walk(tensors, d, d_gates);
    walk.run();
    walk.add_gradients();
  }
  return tensors.result();
}

}  // namespace fastlstm
