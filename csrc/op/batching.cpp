// The Batched key of the older vmap: calls lstm_backward once for each sample of batched gradients.
// torch.autograd.grad with is_grads_batched=True and jacobian with vectorize=True pass such
// gradients, and the fallback of that vmap does not support ops that return lists of tensors. The
// rule for vmap of torch.func is in fastlstm/engine/op.py.
#include <ATen/LegacyVmapTransforms.h>
#include <torch/library.h>

#include "core/call.h"
#include "core/operators.h"

namespace fastlstm {
namespace {

// Calls lstm_backward for each sample, and stacks the results. The weights must not be batched.
BackwardResult sample_by_sample(LstmCall call, BackwardArguments arguments) {
  std::vector<Tensor*> batched;
  std::vector<Tensor> logical;
  const auto collect = [&](Tensor& tensor, const char* = nullptr) {
    if (at::isBatchedTensor(tensor)) batched.push_back(&tensor), logical.push_back(tensor);
  };
  for_each_non_weight(call, collect);
  for (Tensor* saved : {&arguments.output, &arguments.cells, &arguments.gates}) collect(*saved);
  for (OptionalTensor* gradient :
       {&arguments.grad_output, &arguments.grad_h_n, &arguments.grad_c_n, &arguments.grad_cells})
    if (*gradient) collect(**gradient);
  auto views = at::MultiBatchVmapTransform::logicalToPhysical(logical);
  const int64_t levels = views[0].numBatchDims();  // several for vmap of vmap
  const auto sizes = views[0].tensor().sizes().slice(0, levels).vec();
  const int64_t samples = c10::multiply_integers(sizes);
  TORCH_CHECK(samples > 0, "lstm_backward: expected at least one sample of batched gradients");
  std::vector<std::vector<Tensor>> results;  // [tensor of a BackwardResult][sample]
  for (int64_t n = 0; n < samples; ++n) {
    for (size_t i = 0; i < batched.size(); ++i)
      *batched[i] = views[i].tensor().flatten(0, levels - 1)[n];
    auto [grad_input, grad_h_0, grad_c_0, tensors] = call_lstm_backward(call, arguments);
    tensors.insert(tensors.begin(), {grad_input, grad_h_0, grad_c_0});
    results.resize(tensors.size());
    for (size_t k = 0; k < tensors.size(); ++k) results[k].push_back(tensors[k]);
  }
  std::vector<Tensor> stacked;
  for (const std::vector<Tensor>& result : results)
    stacked.push_back(
        views[0].getPhysicalToLogicalMap().apply(at::stack(result).unflatten(0, sizes)));
  return {stacked[0], stacked[1], stacked[2], {stacked.begin() + 3, stacked.end()}};
}

}  // namespace
}  // namespace fastlstm

TORCH_LIBRARY_IMPL(fastlstm, Batched, m) {
  m.impl("lstm_backward", fastlstm::op<fastlstm::sample_by_sample>);
}
