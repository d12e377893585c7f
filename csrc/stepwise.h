// The stepwise engine, the same for every device: per step one GEMM through ATen and one fused
// kernel for the cell equations. It takes every dtype, shape and option; a device brings only
// struct Kernels: forward(StepForward), backward(StepBackward), and previous_hidden, for which the
// function below will do.
//
// No host synchronisation and no allocation outside ATen, so a CUDA graph can capture it.
#pragma once
#include "layer.h"
#include "layer_norm.h"

namespace fastlstm {

namespace stepwise {

// [R,...] row-major in time order, however the caller's strides run.
inline Tensor flat(const Tensor& sequence, int64_t rows) {
  return sequence.contiguous().view({rows, sequence.size(-1)});
}

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

inline Tensor contiguous_or_undefined(const OptionalTensor& tensor) {
  return tensor ? tensor->contiguous() : Tensor();
}

// [T,B,1] whether a row is alive at a step, or undefined without lengths.
inline Tensor live_mask(const Layer& layer) {
  if (!layer.lengths) return {};
  const auto steps = at::arange(layer.steps.expect_int(), layer.lengths->options());
  return steps.unsqueeze(1).lt(layer.lengths->unsqueeze(0)).unsqueeze(2);
}

// The input with zeros behind `lengths`: whatever stands there (NaN, say) must not reach a weight's
// gradient as 0 * NaN.
inline Tensor without_padding(const Layer& layer) {
  const Tensor live = live_mask(layer);
  return live.defined() ? layer.input.masked_fill(live.logical_not(), 0) : layer.input;
}

// The rows of one step of [D,T,B,size] or [D,R,size].
inline Tensor rows_of_step(const Tensor& tensor, int64_t d, const WalkStep& at) {
  const Tensor all = tensor.select(0, d);
  return all.dim() == 3 ? all.select(0, at.t) : all.narrow(0, at.offset, at.rows);
}

// Zoneout as the kernels see it. After a projection h is zoned out by the walk itself.
template <typename T>
class Zones {
 public:
  explicit Zones(const Layer& layer) {
    if (!layer.zones_out()) return;
    none_ = at::zeros({layer.hidden_size.expect_int()}, layer.input.options());
    if (!layer.projects()) h_ = contiguous_or_undefined(layer.zoneout_h);
    c_ = contiguous_or_undefined(layer.zoneout_c);
  }
  Zoneout<T> at(int64_t d, const WalkStep& at) const {
    if (!none_.defined()) return {};
    const auto rows = [&](const Tensor& zones) {
      const Tensor found = zones.defined() ? rows_of_step(zones, d, at) : none_;
      return static_cast<const T*>(found.const_data_ptr());
    };
    const int64_t stride = none_.size(0);
    return {rows(h_), rows(c_), h_.defined() ? stride : 0, c_.defined() ? stride : 0};
  }
  Zoneout<T> all(int64_t d) const { return at(d, {0, 0, 1, 0, 0}); }  // from the first flat row on

 private:
  Tensor none_, h_, c_;
};

inline OptionalTensor bias_of(const Direction& w) {
  return w.b_ih.defined() ? OptionalTensor(w.b_ih + w.b_hh) : std::nullopt;
}

// x W_ih^T + b of every flat row into x_gates [R,4H]; where the layer normalizes, LN(x W_ih^T) + b.
inline void multiply_input(const Layer& layer, const Direction& w, const Tensor& input,
                           Tensor& x_gates) {
  if (layer.normalizes())
    x_gates.copy_(RowNorm(at::mm(input, w.w_ih.t()), w.gain_ih, bias_of(w)).y());
  else if (layer.has_bias())
    at::addmm_out(x_gates, *bias_of(w), input, w.w_ih.t());
  else
    at::mm_out(x_gates, input, w.w_ih.t());
}

// The state before every flat row, from the states [R,size] after them: those one step earlier in
// walking order, the initial state [B,size] where a row starts, zero where it was reset.
inline Tensor previous(const Layer& layer, int64_t d, const Tensor& states, const Tensor& initial,
                       const std::vector<WalkStep>& steps) {
  Tensor before = at::empty_like(states, at::MemoryFormat::Contiguous);
  for (const WalkStep& at : steps) {
    Tensor rows = before.narrow(0, at.offset, at.rows);
    const int64_t carried = std::min(at.rows, at.prev_rows);
    if (carried > 0) rows.narrow(0, 0, carried).copy_(states.narrow(0, at.prev_offset, carried));
    if (carried < at.rows)
      rows.narrow(0, carried, at.rows - carried)
          .copy_(initial.narrow(0, carried, at.rows - carried));
  }
  if (layer.packed()) return before;
  const int64_t steps_count = layer.steps.expect_int();
  Tensor by_step = before.view({steps_count, layer.batch.expect_int(), states.size(-1)});
  if (layer.lengths && d == 1) {  // in reverse a row starts at its last real step
    const auto t = at::arange(steps_count, layer.lengths->options()).view({-1, 1, 1});
    const auto last = layer.lengths->view({1, -1, 1}) - 1;
    by_step.copy_(at::where(t.eq(last), initial.unsqueeze(0), by_step));
  }
  if (layer.reset) by_step.masked_fill_(layer.reset->unsqueeze(2), 0);
  return before;
}

// h_{t-1} of every flat row [R,P] as W_hh sees it: times h_mask.
inline Tensor previous_hidden(const Layer& layer, int64_t d, const Tensor& output,
                              const std::vector<WalkStep>& steps) {
  Tensor h_prev = previous(layer, d, output, layer.h_0.select(0, d), steps);
  if (layer.h_mask)
    for (const WalkStep& at : steps)
      h_prev.narrow(0, at.offset, at.rows).mul_(layer.h_mask->select(0, d).narrow(0, 0, at.rows));
  return h_prev;
}

// c before zoneout, of every flat row [R,H], from the saved cells, which are those behind it.
inline Tensor fresh_cells(const Layer& layer, int64_t d, const Tensor& gates, const Tensor& cells,
                          const Tensor& c_0, const std::vector<WalkStep>& steps) {
  if (!layer.zoneout_c) return cells;
  const auto parts = gates.to(cells.scalar_type()).chunk(4, -1);
  return next_cell(Gates<Tensor>{parts[0], parts[1], parts[2], parts[3]},
                   previous(layer, d, cells, c_0, steps));
}

// The activated gates of all flat rows, made again from the input and from what W_hh sees, h_prev
// [R,P]. Since every h_{t-1} is known, there is no walk: the kernel takes many rows for
// one step, and what it says of c and h is thrown away.
template <typename T, typename A, typename Kernels>
void make_gates(const Layer& layer, int64_t d, const Tensor& input, const Tensor& h_prev,
                Tensor gates) {
  constexpr int64_t kRowsAtOnce = 2048;
  const Direction& w = layer.directions[d];
  const int64_t flat_rows = gates.size(0), hidden = layer.hidden_size.expect_int();
  multiply_input(layer, w, input, gates);
  const int64_t chunk = std::min(flat_rows, kRowsAtOnce);
  Tensor h_gates = at::empty({chunk, 4 * hidden}, gates.options());
  Tensor c = at::zeros({chunk, hidden}, gates.options().dtype(state_dtype(gates.scalar_type())));
  Tensor h = at::empty({chunk, hidden}, gates.options());
  for (int64_t first = 0; first < flat_rows; first += chunk) {
    StepForward<T, A> step{};
    step.rows = std::min(chunk, flat_rows - first), step.hidden_size = hidden;
    Tensor from_h = h_gates.narrow(0, 0, step.rows);
    at::mm_out(from_h, h_prev.narrow(0, first, step.rows), w.w_hh.t());
    step.x_gates = step.gates = static_cast<T*>(gates.data_ptr()) + first * 4 * hidden;
    step.h_gates = static_cast<const T*>(from_h.const_data_ptr());
    step.c_state = step.cells = static_cast<A*>(c.data_ptr());
    step.h_state = step.output = static_cast<T*>(h.data_ptr());
    step.x_gates_stride = step.gates_stride = step.h_gates_stride = 4 * hidden;
    step.c_state_stride = step.cells_stride = step.h_state_stride = step.output_stride = hidden;
    if (layer.normalizes())
      Kernels::forward_normed(StepNorms<T, A>(w, step.rows).forward(step));
    else
      Kernels::forward(step);
  }
}

}  // namespace stepwise

// gates [D,R,4H], or undefined: memory for them, which holds the input's part (multiply_input) of
// the first `multiplied` directions already.
template <typename T, typename A, typename Kernels>
ForwardResult stepwise_forward(const Layer& layer, bool save_cells, bool save_gates,
                               Tensor gates = {}, int64_t multiplied = 0) {
  const int64_t directions = layer.num_directions(), batch = layer.batch.expect_int();
  const int64_t flat_rows = layer.flat_rows.expect_int(), hidden = layer.hidden_size.expect_int();
  const int64_t out = layer.output_size.expect_int();
  const auto options = layer.input.options();
  const auto state_options = options.dtype(state_dtype(layer.input.scalar_type()));

  const Tensor input = stepwise::flat(layer.input, flat_rows);
  const Tensor lengths = stepwise::contiguous_or_undefined(layer.lengths);
  const Tensor reset = stepwise::contiguous_or_undefined(layer.reset);
  const Tensor live = layer.projects() ? stepwise::live_mask(layer) : Tensor();
  const stepwise::Zones<T> zones(layer);
  Tensor output = at::empty({flat_rows, directions * out}, options);
  Tensor h_n = layer.h_0.clone(at::MemoryFormat::Contiguous);
  Tensor c_n = layer.c_0.to(state_options, /*non_blocking=*/false, /*copy=*/true).contiguous();
  Tensor cells = at::empty({save_cells ? directions : 0, flat_rows, hidden}, state_options);
  if (save_gates && !gates.defined())
    gates = at::empty({directions, flat_rows, 4 * hidden}, options);
  Tensor h_gates = at::empty({batch, 4 * hidden}, options);

  for (int64_t d = 0; d < directions; ++d) {
    const Direction& w = layer.directions[d];
    const Tensor w_hh_t = w.w_hh.t(), w_hr_t = layer.projects() ? w.w_hr.t() : Tensor();
    // Activated gates overwrite the pre-activations, saved or not.
    Tensor x_gates = gates.defined() ? gates[d] : at::empty({flat_rows, 4 * hidden}, options);
    if (d >= multiplied) stepwise::multiply_input(layer, w, input, x_gates);

    Tensor h_state = h_n[d], c_state = c_n[d], y = output.narrow(1, d * out, out);
    Tensor hidden_state = layer.projects() ? at::zeros({batch, hidden}, options) : h_state;
    std::optional<StepNorms<T, A>> norms;
    if (layer.normalizes()) norms.emplace(w, batch);
    T* const gates_data = static_cast<T*>(x_gates.data_ptr());
    T* const y_data = static_cast<T*>(y.data_ptr());
    A* const c_data = static_cast<A*>(c_state.data_ptr());
    A* const cells_data = save_cells ? static_cast<A*>(cells[d].data_ptr()) : nullptr;

    for (const WalkStep& at : walk(layer, d == 1)) {
      Tensor h_t = h_state.narrow(0, 0, at.rows), from_h = h_gates.narrow(0, 0, at.rows);
      at::mm_out(from_h,
                 layer.h_mask ? h_t * layer.h_mask->select(0, d).narrow(0, 0, at.rows) : h_t,
                 w_hh_t);
      StepForward<T, A> step;
      static_cast<Step&>(step) = stepwise::step_of(layer, at, d == 1, lengths, reset);
      step.x_gates = step.gates = gates_data + at.offset * 4 * hidden;
      step.x_gates_stride = step.gates_stride = step.h_gates_stride = 4 * hidden;
      step.h_gates = static_cast<const T*>(from_h.const_data_ptr());
      step.c_state = c_data;
      step.cells = cells_data ? cells_data + at.offset * hidden : c_data;
      step.h_state = static_cast<T*>(hidden_state.data_ptr());
      step.c_state_stride = step.cells_stride = step.h_state_stride = hidden;
      step.output = layer.projects() ? step.h_state : y_data + at.offset * directions * out;
      step.output_stride = layer.projects() ? hidden : directions * out;
      step.zoneout = zones.at(d, at);
      if (norms)
        Kernels::forward_normed(norms->forward(step));
      else
        Kernels::forward(step);

      if (!layer.projects()) continue;
      Tensor y_t = y.narrow(0, at.offset, at.rows);
      Tensor projected = at::mm(hidden_state.narrow(0, 0, at.rows), w_hr_t);
      if (layer.zoneout_h)
        projected = zoneout(
            stepwise::rows_of_step(*layer.zoneout_h, d, at),
            layer.reset ? h_t.masked_fill(layer.reset->select(0, at.t).unsqueeze(1), 0) : h_t,
            projected);
      if (live.defined()) {
        y_t.copy_(projected.masked_fill(live[at.t].logical_not(), 0));
        h_t.copy_(at::where(live[at.t], projected, h_t));
      } else {
        y_t.copy_(projected);
        h_t.copy_(projected);
      }
    }
  }
  const auto shaped = [&](const Tensor& flat, int64_t size, bool per_direction) {
    std::vector<int64_t> shape;
    if (per_direction) shape.push_back(directions);
    if (layer.packed())
      shape.push_back(flat_rows);
    else
      shape.insert(shape.end(), {layer.steps.expect_int(), batch});
    shape.push_back(size);
    return flat.view(shape);
  };
  return {shaped(output, directions * out, false), h_n, c_n.to(options.dtype()),
          save_cells ? shaped(cells, hidden, true) : at::empty({0}, state_options),
          save_gates ? shaped(gates, 4 * hidden, true) : at::empty({0}, options)};
}

template <typename T, typename A, typename Kernels>
BackwardResult stepwise_backward(const Layer& layer, const Saved& saved, const OutputGrads& grads,
                                 bool input_needs_grad, bool state_needs_grad, bool per_row) {
  const int64_t directions = layer.num_directions(), batch = layer.batch.expect_int();
  const int64_t flat_rows = layer.flat_rows.expect_int(), hidden = layer.hidden_size.expect_int();
  const int64_t out = layer.output_size.expect_int();
  const auto options = layer.input.options();
  const auto state_options = options.dtype(state_dtype(layer.input.scalar_type()));

  const Tensor input = stepwise::flat(stepwise::without_padding(layer), flat_rows);
  const Tensor lengths = stepwise::contiguous_or_undefined(layer.lengths);
  const Tensor reset = stepwise::contiguous_or_undefined(layer.reset);
  const Tensor live = layer.projects() ? stepwise::live_mask(layer) : Tensor();
  const Tensor output = stepwise::flat(saved.output, flat_rows);
  const Tensor cells = saved.cells.contiguous().view({directions, flat_rows, hidden});
  const Tensor saved_gates =
      saved.gates.defined() ? saved.gates.contiguous().view({directions, flat_rows, 4 * hidden})
                            : Tensor();
  const Tensor d_output =
      grads.output.defined() ? stepwise::flat(grads.output, flat_rows) : Tensor();
  const Tensor d_cells =
      grads.cells.defined()
          ? grads.cells.to(state_options).contiguous().view({directions, flat_rows, hidden})
          : Tensor();
  const Tensor no_d_output = at::zeros({hidden}, options),
               no_d_cells = at::zeros({hidden}, state_options);
  const Tensor c_0 = layer.c_0.to(state_options).contiguous();

  Tensor grad_input =
      input_needs_grad ? at::empty({flat_rows, input.size(1)}, options) : at::empty({0}, options);
  Tensor grad_h_0 = grads.h_n.defined() ? grads.h_n.clone(at::MemoryFormat::Contiguous)
                                        : at::zeros({directions, batch, out}, options);
  Tensor grad_c_0 = grads.c_n.defined() ? grads.c_n.to(state_options, false, true).contiguous()
                                        : at::zeros({directions, batch, hidden}, state_options);
  const stepwise::Zones<T> zones(layer);
  std::vector<Tensor> grad_weights;
  Tensor d_gates;

  for (int64_t d = 0; d < directions; ++d) {
    if (d == 0 || per_row) d_gates = at::empty({flat_rows, 4 * hidden}, options);
    const Direction& w = layer.directions[d];
    const std::vector<WalkStep> steps = walk(layer, d == 1);
    Tensor dh_state = grad_h_0[d], dc_state = grad_c_0[d];
    const Tensor dy = d_output.defined() ? d_output.narrow(1, d * out, out) : Tensor();
    // dL/dh_t before the projection, and after it for all steps (W_hr's gradient needs those).
    Tensor d_hidden = layer.projects() ? at::empty({batch, hidden}, options) : dh_state;
    Tensor d_projected = layer.projects() ? at::empty({flat_rows, out}, options) : Tensor();
    const A* const cells_data = static_cast<const A*>(cells[d].const_data_ptr());
    const Tensor h_prev =
        Kernels::template previous_hidden<T>(layer, d, output.narrow(1, d * out, out), steps);
    // Gates that were not saved are made where their gradient takes their place.
    Tensor gates = saved_gates.defined() ? saved_gates[d] : d_gates;
    if (!saved_gates.defined()) stepwise::make_gates<T, A, Kernels>(layer, d, input, h_prev, gates);
    // With layer normalisation W_hh h_{t-1} of all rows, where its gradient goes (else that is
    // d_gates), and that of the normalised cells.
    const bool normalizes = layer.normalizes();
    std::optional<StepNorms<T, A>> norms;
    if (normalizes) norms.emplace(w, 0);
    const Tensor h_gates = normalizes ? at::mm(h_prev, w.w_hh.t()) : Tensor();
    const Tensor d_h_gates = normalizes ? at::empty_like(h_gates) : d_gates;
    const Tensor d_normed_cells = normalizes ? at::empty_like(cells[d]) : Tensor();
    // o * tanh(c) of all rows, for W_hr's gradient.
    std::optional<RowNorm> normed_cells;
    Tensor unprojected;
    if (normalizes || layer.projects()) {
      Tensor c = stepwise::fresh_cells(layer, d, gates, cells[d], c_0[d], steps);
      if (normalizes) c = normed_cells.emplace(c, w.gain_c, w.bias_c).y();
      const Tensor o = gates.narrow(1, 3 * hidden, hidden).to(c.scalar_type());
      if (layer.projects()) unprojected = fastlstm::hidden(o, c).to(options.dtype());
    }
    const T* const gates_data = static_cast<const T*>(gates.const_data_ptr());

    for (auto at = steps.rbegin(); at != steps.rend(); ++at) {
      Tensor dh_t = dh_state.narrow(0, 0, at->rows);
      Tensor d_gates_t = d_gates.narrow(0, at->offset, at->rows);
      const Tensor live_t = live.defined() ? live[at->t] : Tensor();
      if (layer.projects()) {
        Tensor total = dy.defined() ? dh_t + dy.narrow(0, at->offset, at->rows) : dh_t.clone();
        if (live_t.defined()) total.masked_fill_(live_t.logical_not(), 0);
        Tensor kept;  // by zoneout, for h_{t-1}
        if (layer.zoneout_h) {
          kept = total * stepwise::rows_of_step(*layer.zoneout_h, d, *at);
          total -= kept;
          if (layer.reset) kept.masked_fill_(layer.reset->select(0, at->t).unsqueeze(1), 0);
        }
        d_projected.narrow(0, at->offset, at->rows).copy_(total);
        Tensor d_hidden_t = d_hidden.narrow(0, 0, at->rows);
        at::mm_out(d_hidden_t, total, w.w_hr);
        if (live_t.defined())
          dh_t.masked_fill_(live_t, 0);
        else
          dh_t.zero_();
        if (kept.defined()) dh_t += kept;
      }
      StepBackward<T, A> step;
      static_cast<Step&>(step) = stepwise::step_of(layer, *at, d == 1, lengths, reset);
      step.gates = gates_data + at->offset * 4 * hidden;
      step.cells = cells_data + at->offset * hidden;
      step.prev_cells = cells_data + at->prev_offset * hidden;
      step.c_0 = static_cast<const A*>(c_0[d].const_data_ptr());
      const bool outside = dy.defined() && !layer.projects();
      step.d_output =
          outside ? static_cast<const T*>(dy.const_data_ptr()) + at->offset * directions * out
                  : static_cast<const T*>(no_d_output.const_data_ptr());
      step.d_output_stride = outside ? directions * out : 0;
      step.d_cells = d_cells.defined()
                         ? static_cast<const A*>(d_cells[d].const_data_ptr()) + at->offset * hidden
                         : static_cast<const A*>(no_d_cells.const_data_ptr());
      step.d_cells_stride = d_cells.defined() ? hidden : 0;
      step.dh_state = static_cast<T*>(d_hidden.data_ptr());
      step.dc_state = static_cast<A*>(dc_state.data_ptr());
      step.d_gates = static_cast<T*>(d_gates_t.data_ptr());
      step.gates_stride = step.d_gates_stride = 4 * hidden;
      step.cells_stride = step.prev_cells_stride = step.c_0_stride = hidden;
      step.dh_state_stride = step.dc_state_stride = hidden;
      step.zoneout = zones.at(d, *at);
      if (norms)
        Kernels::backward_normed(
            norms->backward(step, at->offset, h_gates, d_h_gates, d_normed_cells));
      else
        Kernels::backward(step);

      // dL/dh_{t-1}, except for rows that were reset before this step; dead rows keep theirs, since
      // their d_gates are zero.
      if (!state_needs_grad && at->prev_rows == 0) continue;  // nothing but h_0 comes before
      Tensor carried = d_h_gates.narrow(0, at->offset, at->rows);
      if (layer.reset) carried = carried.masked_fill(layer.reset->select(0, at->t).unsqueeze(1), 0);
      if (layer.h_mask)
        dh_t.addcmul_(at::mm(carried, w.w_hh), layer.h_mask->select(0, d).narrow(0, 0, at->rows));
      else
        dh_t.addmm_(carried, w.w_hh);
    }

    Tensor d_x_gates = d_gates;
    std::vector<Tensor> grad_norms;
    if (normalizes) {
      const RowNorm x_norm(at::mm(input, w.w_ih.t()), w.gain_ih, stepwise::bias_of(w));
      const auto [d_x, d_gain_ih, d_bias] = x_norm.backward(d_gates);
      d_x_gates = d_x.to(options.dtype());
      const auto d_gain_hh = std::get<1>(RowNorm(h_gates, w.gain_hh, {}).backward(d_gates));
      const auto [d_c, d_gain_c, d_bias_c] = normed_cells->backward(d_normed_cells);
      for (const Tensor& grad : {d_gain_ih, d_gain_hh, d_gain_c, d_bias_c})
        grad_norms.push_back(grad.to(options.dtype()));
    }
    if (per_row) {
      grad_weights.push_back(d_gates.view(saved.gates[d].sizes()));
    } else {
      grad_weights.push_back(at::mm(d_x_gates.t(), input));
      grad_weights.push_back(at::mm(d_h_gates.t(), h_prev));
      if (layer.has_bias()) grad_weights.push_back(d_gates.sum(0));
      if (layer.projects()) grad_weights.push_back(at::mm(d_projected.t(), unprojected));
      grad_weights.insert(grad_weights.end(), grad_norms.begin(), grad_norms.end());
    }
    if (!input_needs_grad) continue;
    if (d == 0)
      at::mm_out(grad_input, d_x_gates, w.w_ih);
    else
      grad_input.addmm_(d_x_gates, w.w_ih);
  }
  return {input_needs_grad ? grad_input.view(layer.input.sizes()) : grad_input, grad_h_0,
          grad_c_0.to(options.dtype()), grad_weights};
}

}  // namespace fastlstm
