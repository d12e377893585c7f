// Of torch.autograd.grad(is_grads_batched=True), jacobian(vectorize=True), torch.func.vmap over
// torch.autograd.grad. N samples bring gradients of their own to results that they share. They are
// N times the batch rows of one call, and the gradients of the weights are products of its d_gates.
// Where d_gates are not enough for that (a projection, layer normalization), or more than gradients
// is batched, each sample has a call of its own.
#include "op/batching.h"

#include <ATen/LegacyVmapTransforms.h>
#include <torch/library.h>

#include "core/flat_rows.h"
#include "core/layer.h"
#include "core/operators.h"

namespace fastlstm {
namespace {

// A call of lstm_backward in which some tensors hold `count` samples along their first dimension.
struct SampledBackward : OwnedCall, BackwardArguments {
  std::vector<bool> batched;  // of the members
  int64_t count = 0;

  // visit(member, name) in the schema's order, but the weights come last.
  void for_each(const auto& visit) {
    for_each_member(*this, visit);
    visit(grad_output, "grad_output"), visit(grad_h_n, "grad_h_n"), visit(grad_c_n, "grad_c_n");
    visit(grad_cells, "grad_cells"), visit(output, "output"), visit(cells, "cells");
    visit(gates, "gates");
    for (Tensor& weight : weights) visit(weight, "weight");
  }
  // visit(tensor, name, whether it is batched) for those that are given.
  void for_each_given(const auto& visit) {
    auto next = batched.begin();
    for_each([&](auto& member, std::string_view name) {
      const bool is_batched = *next++;
      if constexpr (!std::is_same_v<std::decay_t<decltype(member)>, OptionalTensor>)
        visit(member, name, is_batched);
      else if (member)
        visit(*member, name, is_batched);
    });
  }
};

// The gradients in one list: of the input, h_0, c_0, and what stands for those of the weights.
std::vector<Tensor> run(const SampledBackward& c) {
  auto [grad_input, grad_h_0, grad_c_0, found] = call_lstm_backward(c.call(), c);
  found.insert(found.begin(), {grad_input, grad_h_0, grad_c_0});
  return found;
}

std::vector<Tensor> one_by_one(const SampledBackward& call) {
  const int64_t count = call.count;
  std::vector<std::vector<Tensor>> found;  // the samples of each gradient
  for (int64_t n = 0; n < std::max<int64_t>(count, 1); ++n) {
    SampledBackward one = call;
    one.for_each_given([&](Tensor& t, std::string_view, bool batched) {
      if (batched) t = count ? t.select(0, n) : at::zeros(t.sizes().slice(1), t.options());
    });
    const std::vector<Tensor> gradients = run(one);
    found.resize(gradients.size());
    for (size_t k = 0; k < found.size(); ++k) found[k].push_back(gradients[k]);
  }
  std::vector<Tensor> stacked;
  for (const auto& each : found) stacked.push_back(at::stack(each).narrow(0, 0, count));
  return stacked;
}

// A tensor in which N samples follow each batch row, as more rows.
Tensor as_rows(const Tensor& tensor, std::string_view name, bool batched, int64_t count) {
  if (name == "weight") return tensor;
  if (name == "batch_sizes") return tensor * count;
  const int64_t from_end = name == "lengths" || name == "reset" ? 1 : 2;
  if (!batched) return tensor.repeat_interleave(count, tensor.dim() - from_end);
  const int64_t rows = tensor.dim() - 1 - from_end;
  return tensor.movedim(0, rows + 1).flatten(rows, rows + 1);
}

// The gradients of one direction's weights, [N,...] each, from its d_gates, N for each row.
void add_products(std::vector<Tensor>& found, const SampledBackward& call, const Layer& layer,
                  int64_t d, const Tensor& d_gates) {
  const int64_t rows = layer.flat_rows.expect_int(), out = layer.output_size.expect_int();
  const int64_t gates = d_gates.size(-1), count = call.count;
  const Tensor by_row = d_gates.reshape({rows, count * gates});
  const auto product = [&](const Tensor& factor) {
    return at::mm(by_row.t(), factor).view({count, gates, factor.size(1)});
  };
  const Tensor output = flat(call.output, rows).narrow(1, d * out, out);
  Direction gradients;
  gradients.w_ih = product(flat(without_padding(layer), rows));
  gradients.w_hh = product(previous_hidden(layer, d, output));
  if (layer.has_bias()) gradients.b_ih = by_row.sum(0).view({count, gates});
  append_gradients(found, gradients);
}

std::vector<Tensor> in_one_call(const SampledBackward& call, const Layer& layer) {
  const int64_t count = call.count;
  SampledBackward all = call;
  all.request.per_row = true;
  all.for_each_given([count](Tensor& tensor, std::string_view name, bool batched) {
    tensor = as_rows(tensor, name, batched, count);
  });
  const std::vector<Tensor> found = run(all);
  const auto apart = [&](const Tensor& gradient, const Tensor& like) {
    return gradient.unflatten(-2, {like.size(-2), count}).movedim(-2, 0);
  };
  std::vector<Tensor> result{
      call.request.input ? apart(found[0], call.input) : found[0].expand({count, 0}),
      apart(found[1], call.h_0), apart(found[2], call.c_0)};
  for (int64_t d = 0; d < layer.num_directions(); ++d) {
    if (call.request.per_row)
      result.push_back(apart(found[3 + d], call.gates));
    else
      add_products(result, call, layer, d, found[3 + d]);
  }
  return result;
}

std::vector<Tensor> backward_of_samples(SampledBackward call) {
  bool only_gradients = true;
  call.for_each_given([&](const Tensor& tensor, std::string_view name, bool batched) {
    if (batched) call.count = tensor.size(0);
    only_gradients = only_gradients && (!batched || name.substr(0, 5) == "grad_");
  });
  if (!only_gradients) return one_by_one(call);
  const Layer layer = check_layer(call.call());
  const bool needs_more = layer.projects() && !call.request.per_row;
  if (layer.normalizes() || needs_more) return one_by_one(call);
  return in_one_call(call, layer);
}

// autograd's own batched gradients come from torch._vmap_internals, the older vmap: all its levels
// are one dimension here. (torch.func's has a rule in fastlstm/_transforms.py.)
BackwardResult lstm_backward_batched(const LstmCall& c, const BackwardArguments& a) {
  SampledBackward call{OwnedCall(c), a, /*batched=*/{}};
  std::vector<Tensor> logical;
  call.for_each([&](const OptionalTensor& member, const char*) {
    call.batched.push_back(member && at::isBatchedTensor(*member));
    if (call.batched.back()) logical.push_back(*member);
  });
  const auto views = at::MultiBatchVmapTransform::logicalToPhysical(logical);
  const int64_t levels = views[0].numBatchDims();
  auto view = views.begin();
  call.for_each_given([&](Tensor& tensor, std::string_view, bool batched) {
    if (batched) tensor = (view++)->tensor().flatten(0, levels - 1);
  });

  std::vector<Tensor> found = backward_of_samples(call);
  const auto sizes = views[0].tensor().sizes().slice(0, levels);
  for (Tensor& gradient : found)
    gradient = views[0].getPhysicalToLogicalMap().apply(gradient.unflatten(0, sizes));
  return {found[0], found[1], found[2], {found.begin() + 3, found.end()}};
}

}  // namespace

std::vector<Tensor> lstm_backward_of_samples(const std::vector<OptionalTensor>& tensors,
                                             const std::vector<bool>& batched,
                                             const std::string& layout, bool input_needs_grad,
                                             bool state_needs_grad, bool per_row,
                                             const std::string& engine) {
  SampledBackward call;
  call.layout = layout, call.engine = engine, call.batched = batched;
  call.request = {input_needs_grad, state_needs_grad, per_row};
  size_t others = 0;
  call.for_each([&others](const auto&, const char*) { ++others; });
  call.weights.resize(tensors.size() - others);
  auto next = tensors.begin();
  call.for_each([&next](auto& member, const char*) {
    if (*next) member = **next;
    ++next;
  });
  return backward_of_samples(std::move(call));
}

}  // namespace fastlstm

TORCH_LIBRARY_IMPL(fastlstm, Batched, m) {
  m.impl("lstm_backward", fastlstm::op<fastlstm::lstm_backward_batched>);
}
