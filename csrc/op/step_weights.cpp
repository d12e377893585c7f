#include "op/step_weights.h"

#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <torch/csrc/autograd/graph_task.h>
#include <torch/csrc/autograd/variable.h>

#include <algorithm>

#include "core/operators.h"

namespace fastlstm {

using torch::autograd::Node;
using torch::autograd::variable_list;

namespace {

template <typename Pointer, typename Made>
Pointer make() {
  if constexpr (std::is_same_v<Pointer, std::shared_ptr<Node>>)
    return std::make_shared<Made>();
  else
    return c10::make_intrusive<Made>();
}

// A tensor on the CPU itself, not a wrapper of one.
bool is_plain(const Tensor& tensor) {
  using c10::DispatchKey;
  static const c10::DispatchKeySet wrappers(
      {DispatchKey::Python, DispatchKey::Batched, DispatchKey::FuncTorchBatched,
       DispatchKey::FuncTorchGradWrapper, DispatchKey::Functionalize,
       DispatchKey::BatchedNestedTensor});
  return tensor.is_cpu() && tensor.layout() == at::kStrided && !tensor.key_set().has_any(wrappers);
}

}  // namespace

StepWeights::Registry& StepWeights::registry() {
  static auto* const registry = new Registry;  // graphs may outlive static objects
  return *registry;
}

StepWeights::Pointer StepWeights::Registry::find(const Key& key) {
  const auto found = nodes.find(key);
  return found == nodes.end() ? Pointer() : found->second.lock();
}

bool StepWeights::serves(const LstmCall& call) {
  for (const OptionalTensor* option : {&call.batch_sizes, &call.lengths, &call.reset, &call.h_mask,
                                       &call.zoneout_h, &call.zoneout_c})
    if (*option) return false;
  const at::TensorList weights = call.weights;
  return (weights.size() == 2 || weights.size() == 4) && weights[0].requires_grad() &&
         weights[1].requires_grad() && std::all_of(weights.begin(), weights.end(), is_plain) &&
         is_plain(call.input) && is_plain(call.h_0) && is_plain(call.c_0) &&
         call.input.dim() == 3 && call.input.size(0) == 1 && call.input.numel() > 0 &&
         call.h_0.size(0) == 1 && call.h_0.numel() > 0 &&
         !c10::impl::TorchDispatchModeTLS::any_modes_set();
}

StepWeights::Pointer StepWeights::of(at::TensorList weights) {
  torch::autograd::edge_list edges;
  Key key{std::this_thread::get_id(), {}};
  for (const Tensor& weight : weights) {
    edges.push_back(torch::autograd::impl::gradient_edge(weight));
    key.second.emplace_back(edges.back().function.get(), edges.back().input_nr);
  }
  Registry& all = registry();
  {
    const std::lock_guard guard(all.mutex);
    if (Pointer node = all.find(key)) return node;
  }
  // Outside of the lock: in anomaly mode a new node calls Python, which may free others.
  Pointer pointer = make<Pointer, StepWeights>();
  auto* const node = static_cast<StepWeights*>(pointer.get());
  node->set_next_edges(std::move(edges));
  for (const Tensor& weight : weights) node->add_input_metadata(weight);
  node->key_ = std::move(key);
  const std::lock_guard guard(all.mutex);
  all.nodes.insert_or_assign(node->key_, Weak(pointer));
  return pointer;
}

void StepWeights::forget() {
  Registry& all = registry();
  Pointer found;  // freed after the lock
  const std::lock_guard guard(all.mutex);
  found = all.find(key_);
  if (!found || found.get() == this) all.nodes.erase(key_);
}

void StepWeights::insert_behind(Node& step, size_t first, at::TensorList weights) {
  const Pointer node = of(weights);
  for (uint32_t k = 0; k < weights.size(); ++k)
    if (weights[k].requires_grad()) step.set_next_edge(first + k, {node, k});
}

StepWeights* StepWeights::behind_current(size_t first, const variable_list& grads) {
  const auto step = torch::autograd::get_current_node();
  const auto is_wrapper = [](const Tensor& grad) { return grad.defined() && !is_plain(grad); };
  if (!step || step->num_outputs() <= first ||
      std::any_of(grads.begin(), grads.end(), is_wrapper) ||
      c10::impl::TorchDispatchModeTLS::any_modes_set())
    return nullptr;
  return dynamic_cast<StepWeights*>(step->next_edge(first).function.get());
}

void StepWeights::add(StepFactors step) {
  Sum* sum = nullptr;
  {
    const std::lock_guard guard(mutex_);
    sum = &sums_[torch::autograd::get_current_graph_task_id()];
  }
  sum->add(std::move(step));  // a pass has one thread here
}

variable_list StepWeights::apply(variable_list&& gradients) {
  forget();
  TORCH_CHECK(std::any_of(next_edges().begin(), next_edges().end(),
                          [](const auto& edge) { return edge.is_valid(); }),
              "lstm: another thread freed the graph of these steps");
  Sum sum;
  {
    const std::lock_guard guard(mutex_);
    const auto found = sums_.find(torch::autograd::get_current_graph_task_id());
    if (found == sums_.end()) return std::move(gradients);
    sum = std::move(found->second);
    sums_.erase(found);
  }
  std::vector<Tensor> of_steps = sum.result(input_metadata(0).dtype().toScalarType());
  of_steps.push_back(of_steps.back());  // b_hh has b_ih's
  for (size_t k = 0; k < gradients.size(); ++k)
    gradients[k] = gradients[k].defined() ? gradients[k] + of_steps[k] : of_steps[k];
  return std::move(gradients);
}

void StepWeights::Sum::add(StepFactors step) {
  // A product of so many rows takes little longer a row than one of more, and what it reads is in
  // the cache. Without a limit a long loop would keep all its gradients of gates.
  constexpr int64_t kRows = 1024;
  rows_ += step.d_gates.size(1);
  versions_.emplace_back(step.input._version(), step.h_0._version());
  steps_.push_back(std::move(step));
  if (rows_ >= kRows) multiply();
}

void StepWeights::Sum::multiply() {
  for (size_t k = 0; k < steps_.size(); ++k)
    TORCH_CHECK(steps_[k].input._version() == versions_[k].first &&
                    steps_[k].h_0._version() == versions_[k].second,
                "lstm: the input or the state of a step has been modified by an inplace operation "
                "before the gradient of the weights was computed");
  const std::vector<Tensor> more = step_gradients_cpu(steps_);
  steps_.clear();
  versions_.clear();
  rows_ = 0;
  if (sums_.empty())
    sums_ = more;
  else
    for (size_t k = 0; k < sums_.size(); ++k) sums_[k].add_(more[k]);
}

std::vector<Tensor> StepWeights::Sum::result(at::ScalarType dtype) {
  if (!steps_.empty()) multiply();
  for (Tensor& sum : sums_) sum = sum.to(dtype);
  return std::move(sums_);
}

}  // namespace fastlstm
