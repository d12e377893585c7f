// The Batched key of the older vmap: calls lstm_backward once for each sample of batched gradients.
// torch.autograd.grad with is_grads_batched=True and jacobian with vectorize=True pass such
// gradients, and the fallback of that vmap does not support ops that return lists of tensors. The
// rule for vmap of torch.func is in fastlstm/engine/op.py.
#include <ATen/LegacyVmapTransforms.h>
#include <torch/library.h>

#include "core/operators.h"

namespace fastlstm {
namespace {

using Values = std::vector<c10::IValue>;

// Stacks result k of all calls. If it is a list of tensors, returns a list of stacked tensors.
c10::IValue stacked(const std::vector<Values>& results, size_t k, const auto& to_logical) {
  const auto stack = [&](const auto& tensor_of) {
    std::vector<at::Tensor> all;
    for (const Values& result : results) all.push_back(tensor_of(result[k]));
    return to_logical(at::stack(all));
  };
  if (results[0][k].isTensor())
    return stack([](const c10::IValue& value) { return value.toTensor(); });
  std::vector<at::Tensor> list;
  for (size_t i = 0; i < results[0][k].toTensorVector().size(); ++i)
    list.push_back(stack([i](const c10::IValue& value) { return value.toTensorVector()[i]; }));
  return list;
}

// Calls the op once for each sample. A tensor in a list of tensors must not be batched.
void sample_by_sample(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const Values arguments = torch::jit::pop(*stack, op.schema().arguments().size());
  std::vector<size_t> batched_indices;
  std::vector<at::Tensor> logical;
  for (size_t k = 0; k < arguments.size(); ++k)
    if (arguments[k].isTensor() && at::isBatchedTensor(arguments[k].toTensor()))
      batched_indices.push_back(k), logical.push_back(arguments[k].toTensor());
  auto views = at::MultiBatchVmapTransform::logicalToPhysical(logical);
  const int64_t levels = views[0].numBatchDims();  // several for vmap of vmap
  const auto sizes = views[0].tensor().sizes().slice(0, levels).vec();
  std::vector<Values> results(c10::multiply_integers(sizes));
  TORCH_CHECK(!results.empty(), "lstm_backward: expected at least one sample of batched gradients");
  for (size_t n = 0; n < results.size(); ++n) {
    Values values = arguments;
    for (size_t i = 0; i < batched_indices.size(); ++i)
      values[batched_indices[i]] = views[i].tensor().flatten(0, levels - 1)[n];
    op.callBoxed(&values);  // replaces the arguments by the results
    results[n] = std::move(values);
  }
  const auto to_logical = [&](const at::Tensor& samples) {
    return views[0].getPhysicalToLogicalMap().apply(samples.unflatten(0, sizes));
  };
  for (size_t k = 0; k < results[0].size(); ++k)
    torch::jit::push(*stack, stacked(results, k, to_logical));
}

}  // namespace
}  // namespace fastlstm

TORCH_LIBRARY_IMPL(fastlstm, Batched, m) {
  m.impl("lstm_backward", torch::CppFunction::makeFromBoxedFunction<&fastlstm::sample_by_sample>());
}
