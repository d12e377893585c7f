// Many gradients of one forward at once: torch.autograd.grad(is_grads_batched=True),
// jacobian(vectorize=True), torch.func.vmap over torch.autograd.grad. N samples bring gradients of
// their own to results that they share. They are N times the batch rows of one call, and the
// gradients of the weights are products of its d_gates. Where d_gates are not enough for that (a
// projection, layer normalisation, gates that backward recomputes), or more than gradients is
// batched, each sample has a call of its own.
#include "op/batching.h"

#include <ATen/LegacyVmapTransforms.h>
#include <torch/library.h>

#include "core/flat_rows.h"
#include "core/layer.h"
#include "core/operators.h"

namespace fastlstm {
namespace {

// The tensors of a call by position; the weights come last.
enum {
  kGradOutput,
  kGradHN,
  kGradCN,
  kGradCells,
  kInput,
  kH0,
  kC0,
  kBatchSizes,
  kLengths,
  kReset,
  kHMask,
  kZoneoutH,
  kZoneoutC,
  kOutput,
  kCells,
  kGates,
  kWeights
};

std::vector<Tensor> weights(const SampledBackward& call) {
  std::vector<Tensor> found;
  for (size_t k = kWeights; k < call.tensors.size(); ++k) found.push_back(*call.tensors[k]);
  return found;
}

LstmCall lstm_call(const SampledBackward& call, const std::vector<Tensor>& weights) {
  const auto& t = call.tensors;
  return {*t[kInput],  *t[kH0],   *t[kC0],   weights,      t[kBatchSizes],
          t[kLengths], t[kReset], t[kHMask], t[kZoneoutH], t[kZoneoutC]};
}

// The gradients in one list: of the input, h_0, c_0, and what stands for those of the weights.
std::vector<Tensor> run(const SampledBackward& call) {
  const auto& t = call.tensors;
  const std::vector<Tensor> all_weights = weights(call);
  auto [grad_input, grad_h_0, grad_c_0, found] =
      call_lstm_backward(lstm_call(call, all_weights),
                         {t[kGradOutput], t[kGradHN], t[kGradCN], t[kGradCells], *t[kOutput],
                          *t[kCells], *t[kGates], call.request, call.engine});
  found.insert(found.begin(), {grad_input, grad_h_0, grad_c_0});
  return found;
}

int64_t count_samples(const SampledBackward& call) {
  return call.tensors[call.batched.front()]->size(0);
}

bool is_batched(const SampledBackward& call, size_t position) {
  return std::count(call.batched.begin(), call.batched.end(), position) > 0;
}

std::vector<Tensor> one_by_one(const SampledBackward& call) {
  const int64_t count = count_samples(call);
  std::vector<std::vector<Tensor>> found;  // the samples of each gradient
  for (int64_t n = 0; n < std::max<int64_t>(count, 1); ++n) {
    SampledBackward one = call;
    for (const size_t k : call.batched) {
      const Tensor& all = *call.tensors[k];
      one.tensors[k] = count ? all.select(0, n) : at::zeros(all.sizes().slice(1), all.options());
    }
    const std::vector<Tensor> gradients = run(one);
    found.resize(gradients.size());
    for (size_t k = 0; k < found.size(); ++k) found[k].push_back(gradients[k]);
  }
  std::vector<Tensor> stacked;
  for (const auto& each : found) stacked.push_back(at::stack(each).narrow(0, 0, count));
  return stacked;
}

// A tensor in which N samples follow each batch row, as more rows.
Tensor as_rows(const SampledBackward& call, size_t position) {
  const Tensor& tensor = *call.tensors[position];
  const int64_t count = count_samples(call);
  if (position == kBatchSizes) return tensor * count;
  const int64_t from_end = position == kLengths || position == kReset ? 1 : 2;
  if (is_batched(call, position)) {
    const int64_t rows = tensor.dim() - 1 - from_end;
    return tensor.movedim(0, rows + 1).flatten(rows, rows + 1);
  }
  return tensor.repeat_interleave(count, tensor.dim() - from_end);
}

// The gradients of one direction's weights, [N,...] each, from its d_gates, N for each row.
void add_products(std::vector<Tensor>& found, const SampledBackward& call, const Layer& layer,
                  int64_t d, const Tensor& d_gates) {
  const int64_t count = count_samples(call), gates = d_gates.size(-1);
  const int64_t rows = layer.flat_rows.expect_int(), out = layer.output_size.expect_int();
  const Tensor by_row = d_gates.reshape({rows, count * gates});
  const auto product = [&](const Tensor& factor) {
    return at::mm(by_row.t(), factor).view({count, gates, factor.size(1)});
  };
  const Tensor output = flat(*call.tensors[kOutput], rows).narrow(1, d * out, out);
  found.push_back(product(flat(without_padding(layer), rows)));
  found.push_back(product(previous_hidden(layer, d, output, walk(layer, d == 1))));
  if (layer.has_bias()) found.push_back(by_row.sum(0).view({count, gates}));
}

std::vector<Tensor> in_one_call(const SampledBackward& call, const Layer& layer) {
  const int64_t count = count_samples(call);
  SampledBackward all = call;
  all.request.per_row = true;
  for (size_t k = 0; k < kWeights; ++k)
    if (call.tensors[k]) all.tensors[k] = as_rows(call, k);
  const std::vector<Tensor> found = run(all);
  const auto apart = [&](const Tensor& gradient, size_t like) {
    return gradient.unflatten(-2, {call.tensors[like]->size(-2), count}).movedim(-2, 0);
  };
  std::vector<Tensor> result{
      call.request.input ? apart(found[0], kInput) : found[0].expand({count, 0}),
      apart(found[1], kH0), apart(found[2], kC0)};
  for (int64_t d = 0; d < layer.num_directions(); ++d) {
    if (call.request.per_row)
      result.push_back(apart(found[3 + d], kGates));
    else
      add_products(result, call, layer, d, found[3 + d]);
  }
  return result;
}

}  // namespace

std::vector<Tensor> backward_of_samples(const SampledBackward& call) {
  if (call.batched.back() > kGradCells) return one_by_one(call);
  const auto& t = call.tensors;
  const std::vector<Tensor> all_weights = weights(call);
  const Layer layer = check_layer(lstm_call(call, all_weights));
  const bool needs_more = layer.projects() && !call.request.per_row;
  if (t[kGates]->numel() == 0 || layer.normalizes() || needs_more) return one_by_one(call);
  return in_one_call(call, layer);
}

namespace {

// autograd's own batched gradients come from torch._vmap_internals, the older vmap: all its levels
// are one dimension here. (torch.func's has a rule in fastlstm/_transforms.py.)
BackwardResult lstm_backward_batched(const LstmCall& c, const BackwardArguments& a) {
  SampledBackward call{
      {a.grad_output, a.grad_h_n, a.grad_c_n, a.grad_cells, c.input, c.h_0, c.c_0, c.batch_sizes,
       c.lengths, c.reset, c.h_mask, c.zoneout_h, c.zoneout_c, a.output, a.cells, a.gates},
      {},
      a.request,
      std::string(a.engine)};
  call.tensors.insert(call.tensors.end(), c.weights.begin(), c.weights.end());
  std::vector<Tensor> logical;
  for (size_t k = 0; k < call.tensors.size(); ++k) {
    if (!call.tensors[k] || !at::isBatchedTensor(*call.tensors[k])) continue;
    call.batched.push_back(k);
    logical.push_back(*call.tensors[k]);
  }
  const auto views = at::MultiBatchVmapTransform::logicalToPhysical(logical);
  const int64_t levels = views[0].numBatchDims();
  for (size_t k = 0; k < logical.size(); ++k)
    call.tensors[call.batched[k]] = views[k].tensor().flatten(0, levels - 1);

  std::vector<Tensor> found = backward_of_samples(call);
  const auto sizes = views[0].tensor().sizes().slice(0, levels);
  for (Tensor& gradient : found)
    gradient = views[0].getPhysicalToLogicalMap().apply(gradient.unflatten(0, sizes));
  return {found[0], found[1], found[2], {found.begin() + 3, found.end()}};
}

}  // namespace
}  // namespace fastlstm

TORCH_LIBRARY_IMPL(fastlstm, Batched, m) {
  m.impl("lstm_backward", fastlstm::backward_op<fastlstm::lstm_backward_batched>);
}
