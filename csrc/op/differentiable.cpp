#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/autograd.h>

#include "core/flat_rows.h"
#include "core/operators.h"
#include "equations/layer_norm_step.h"
#include "op/backward.h"

namespace fastlstm {
namespace {

// output, h_n, c_n and cells of one direction, flat over rows.
struct Walked {
  Tensor output, h_n, c_n, cells;
};

// Rows [0, rows) of `state` replaced by `fresh`.
Tensor replace_head(const Tensor& state, const Tensor& fresh) {
  const int64_t rows = fresh.size(0), all = state.size(0);
  return rows == all ? fresh : at::cat({fresh, state.narrow(0, rows, all - rows)});
}

Walked walk_direction(const Layer& layer, int64_t d) {
  const Direction& w = layer.directions[d];
  const auto dtype = layer.input.scalar_type(), state = state_dtype(dtype);
  const Tensor input =
      layer.input.reshape({layer.flat_rows.expect_int(), layer.input_size.expect_int()});
  const OptionalTensor bias = layer.has_bias() ? OptionalTensor(w.b_ih + w.b_hh) : std::nullopt;
  const auto norm = [&](const Tensor& x, const Tensor& gain, const OptionalTensor& bias) {
    return at::layer_norm(x.to(state), {x.sym_size(-1).expect_int()}, gain.to(state),
                          bias ? OptionalTensor(bias->to(state)) : std::nullopt, kNormEpsilon);
  };
  const Tensor x_gates = layer.normalizes() ? norm(at::linear(input, w.w_ih), w.gain_ih, bias)
                                            : at::linear(input, w.w_ih, bias);
  Tensor h = layer.h_0.select(0, d), c = layer.c_0.select(0, d).to(state);
  const std::vector<WalkStep> steps = walk(layer, d == 1);
  std::vector<Tensor> outputs(steps.size()), cells(steps.size());
  for (const WalkStep& at : steps) {
    Tensor h_t = h.narrow(0, 0, at.rows), c_t = c.narrow(0, 0, at.rows);
    if (layer.reset) {
      const Tensor reset = layer.reset->select(0, at.t).unsqueeze(1);
      h_t = h_t.masked_fill(reset, 0), c_t = c_t.masked_fill(reset, 0);
    }
    const Tensor h_in = layer.h_mask ? h_t * layer.h_mask->select(0, d).narrow(0, 0, at.rows) : h_t;
    Tensor from_h = at::linear(h_in, w.w_hh);
    if (layer.normalizes()) from_h = norm(from_h, w.gain_hh, std::nullopt);
    const Tensor pre = (x_gates.narrow(0, at.offset, at.rows) + from_h).to(state);
    const Gates<Tensor> gates = activate(split(pre));
    Tensor c_next = next_cell(gates, c_t);
    const Tensor shown = layer.normalizes() ? norm(c_next, w.gain_c, w.bias_c) : c_next;
    Tensor h_next = hidden(gates.o, shown).to(dtype);
    if (layer.projects()) h_next = at::linear(h_next, w.w_hr);
    if (layer.zoneout_h) h_next = zoneout(rows_of_step(*layer.zoneout_h, d, at), h_t, h_next);
    if (layer.zoneout_c)
      c_next = zoneout(rows_of_step(*layer.zoneout_c, d, at).to(state), c_t, c_next);
    outputs[at.t] = h_next;
    if (layer.lengths) {
      const Tensor live = layer.lengths->gt(at.t).unsqueeze(1);
      outputs[at.t] = h_next.masked_fill(live.logical_not(), 0);
      h_next = at::where(live, h_next, h);
      c_next = at::where(live, c_next, c);
    }
    cells[at.t] = c_next;
    h = replace_head(h, h_next), c = replace_head(c, c_next);
  }
  return {at::cat(outputs), h, c.to(layer.c_0.scalar_type()), at::cat(cells)};
}

}  // namespace

std::vector<Tensor> differentiable_backward(const Layer& original, const OutputGrads& grads) {
  at::AutoGradMode enable(true);
  // Fresh aliases: the derivative with respect to one of them must not run on through another's
  // history (the input of a second layer depends on a weight that both layers share).
  std::vector<Tensor> leaves;
  const auto alias = [&](const Tensor& tensor) {
    leaves.push_back(tensor.view_as(tensor));
    return leaves.back();
  };
  Layer layer = original;
  layer.input = alias(original.input);
  layer.h_0 = alias(original.h_0);
  layer.c_0 = alias(original.c_0);
  for (Direction& w : layer.directions)
    for_each_weight(w, [&](Tensor& tensor, const char*) { tensor = alias(tensor); });

  std::vector<Tensor> outputs, h_n, c_n, cells;
  for (int64_t d = 0; d < layer.num_directions(); ++d) {
    const Walked walked = walk_direction(layer, d);
    outputs.push_back(walked.output);
    h_n.push_back(walked.h_n), c_n.push_back(walked.c_n), cells.push_back(walked.cells);
  }
  std::vector<Tensor> results, results_grads;
  const auto add = [&](const Tensor& result, const Tensor& grad) {
    if (!grad.defined()) return;
    results.push_back(result);
    results_grads.push_back(grad.reshape(result.sizes()));
  };
  add(at::cat(outputs, -1), grads.output);
  add(at::stack(h_n), grads.h_n);
  add(at::stack(c_n), grads.c_n);
  add(at::stack(cells), grads.cells);

  std::vector<Tensor> inputs;
  for (const Tensor& leaf : leaves)
    if (leaf.requires_grad()) inputs.push_back(leaf);
  const auto found = torch::autograd::grad(results, inputs, results_grads, /*retain_graph=*/true,
                                           /*create_graph=*/true, /*allow_unused=*/true);
  std::vector<Tensor> gradients;
  size_t next = 0;
  for (const Tensor& leaf : leaves)
    gradients.push_back(leaf.requires_grad() ? found[next++] : Tensor());
  return gradients;
}

}  // namespace fastlstm
