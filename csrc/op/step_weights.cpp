#include "step_weights.h"

#include <torch/csrc/autograd/graph_task.h>
#include <torch/csrc/autograd/variable.h>

#include <algorithm>
#include <memory>
#include <type_traits>

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

// The node's pointer; nullptr if its last owner has let go of it.
template <typename N>
auto owned(N* node) {
  if constexpr (std::is_base_of_v<c10::intrusive_ptr_target, N>) {
    auto weak = c10::weak_intrusive_ptr<N>::reclaim(node);
    auto strong = weak.lock();
    weak.release();
    return strong;
  } else {
    return node->weak_from_this().lock();
  }
}

// A tensor with values, on no level of a transform.
bool is_plain(const Tensor& tensor) {
  using c10::DispatchKey;
  static const c10::DispatchKeySet others(
      {DispatchKey::Python, DispatchKey::Batched, DispatchKey::FuncTorchBatched,
       DispatchKey::FuncTorchGradWrapper, DispatchKey::Functionalize,
       DispatchKey::BatchedNestedTensor});
  return tensor.is_cpu() && tensor.layout() == at::kStrided && !tensor.key_set().has_any(others);
}

}  // namespace

StepWeights::Registry& StepWeights::registry() {
  static auto* const registry = new Registry;  // graphs may outlive static objects
  return *registry;
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
         call.h_0.size(0) == 1 && call.h_0.numel() > 0;
}

bool StepWeights::has_values(const variable_list& tensors) {
  return std::all_of(tensors.begin(), tensors.end(),
                     [](const Tensor& tensor) { return !tensor.defined() || is_plain(tensor); });
}

StepWeights::Pointer StepWeights::of(at::TensorList weights) {
  torch::autograd::edge_list edges;
  Destinations destinations;
  for (const Tensor& weight : weights) {
    edges.push_back(torch::autograd::impl::gradient_edge(weight));
    destinations.emplace_back(edges.back().function.get(), edges.back().input_nr);
  }
  Registry& all = registry();
  const std::lock_guard lock(all.mutex);
  StepWeights*& known = all.nodes[destinations];
  if (known)
    if (Pointer node = owned<Node>(known)) return node;
  Pointer node = make<Pointer, StepWeights>();
  known = static_cast<StepWeights*>(node.get());
  known->destinations_ = std::move(destinations);
  known->set_next_edges(std::move(edges));
  for (const Tensor& weight : weights) known->add_input_metadata(weight);
  return node;
}

StepWeights::~StepWeights() {
  Registry& all = registry();
  const std::lock_guard lock(all.mutex);
  const auto found = all.nodes.find(destinations_);
  if (found != all.nodes.end() && found->second == this) all.nodes.erase(found);
}

void StepWeights::insert_behind(Node& step, size_t first, at::TensorList weights) {
  const Pointer node = of(weights);
  for (uint32_t k = 0; k < weights.size(); ++k)
    if (weights[k].requires_grad()) step.set_next_edge(first + k, {node, k});
}

void StepWeights::add(at::TensorList weights, StepFactors step) {
  const Pointer pointer = of(weights);  // the graph holds it
  auto& node = static_cast<StepWeights&>(*pointer);
  const std::lock_guard lock(node.mutex_);
  node.sums_[torch::autograd::get_current_graph_task_id()].add(std::move(step));
}

variable_list StepWeights::apply(variable_list&& gradients) {
  Sum sum;
  {
    const std::lock_guard lock(mutex_);
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
  rows_ += step.d_gates.size(0);
  steps_.push_back({step.input.contiguous(), step.h_0.contiguous(), step.d_gates.contiguous()});
  if (rows_ >= kRows) multiply();
}

void StepWeights::Sum::multiply() {
  const std::vector<Tensor> more = step_gradients_cpu(steps_);
  steps_.clear();
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
