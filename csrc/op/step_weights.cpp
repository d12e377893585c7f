#include "op/step_weights.h"

#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <torch/csrc/autograd/engine.h>
#include <torch/csrc/autograd/graph_task.h>
#include <torch/csrc/autograd/variable.h>

#include <algorithm>
#include <type_traits>
#include <utility>

#include "core/operators.h"

namespace fastlstm {

using torch::autograd::Node;
using torch::autograd::variable_list;

namespace {

// In newer versions of torch nodes count their references themselves.
template <typename Pointer>
constexpr bool is_shared = std::is_same_v<Pointer, std::shared_ptr<Node>>;

template <typename Pointer, typename Made>
Pointer make() {
  if constexpr (is_shared<Pointer>)
    return std::make_shared<Made>();
  else
    return c10::make_intrusive<Made>();
}

bool is_plain(const Tensor& tensor) {
  return tensor.is_cpu() && tensor.layout() == at::kStrided && !is_wrapper(tensor);
}

}  // namespace

bool StepWeights::serves(const LstmCall& call) {
  const at::TensorList weights = call.weights;
  return call.is_plain() && weights[0].requires_grad() && weights[1].requires_grad() &&
         std::all_of(weights.begin(), weights.end(), is_plain) && is_plain(call.input) &&
         is_plain(call.h_0) && is_plain(call.c_0) && call.input.dim() == 3 &&
         call.input.size(0) == 1 && call.input.numel() > 0 && call.h_0.size(0) == 1 &&
         call.h_0.numel() > 0 && !c10::impl::TorchDispatchModeTLS::any_modes_set();
}

StepWeights::Pointer StepWeights::of(at::TensorList weights) {
  using Key = std::vector<std::pair<Node*, uint32_t>>;
  using Weak =
      std::conditional_t<is_shared<Pointer>, std::weak_ptr<Node>, c10::weak_intrusive_ptr<Node>>;
  // By where the gradients go. Graphs own the nodes. What is left of one that was freed has no
  // edges; it is removed when there are twice as many.
  thread_local std::map<Key, Weak> nodes;
  thread_local size_t most = 16;
  torch::autograd::edge_list edges;
  Key key;
  for (const Tensor& weight : weights) {
    edges.push_back(torch::autograd::impl::gradient_edge(weight));
    key.emplace_back(edges.back().function.get(), edges.back().input_nr);
  }
  if (const auto found = nodes.find(key); found != nodes.end())
    if (Pointer node = found->second.lock(); node && !static_cast<StepWeights&>(*node).has_run_)
      return node;
  Pointer pointer = make<Pointer, StepWeights>();
  pointer->set_next_edges(std::move(edges));
  for (const Tensor& weight : weights) pointer->add_input_metadata(weight);
  if (nodes.size() >= most) {
    std::erase_if(nodes, [](const auto& node) { return node.second.expired(); });
    most = 2 * nodes.size() + 16;
  }
  nodes.insert_or_assign(std::move(key), Weak(pointer));
  return pointer;
}

void StepWeights::insert_behind(Node& step, size_t first, at::TensorList weights) {
  const Pointer node = of(weights);
  for (uint32_t k = 0; k < weights.size(); ++k)
    if (weights[k].requires_grad()) step.set_next_edge(first + k, {node, k});
}

StepWeights* StepWeights::behind_current(size_t first, const variable_list& grads) {
  const auto step = torch::autograd::get_current_node();
  const auto is_traced = [](const Tensor& grad) { return grad.defined() && !is_plain(grad); };
  if (!step || step->num_outputs() <= first || std::any_of(grads.begin(), grads.end(), is_traced) ||
      c10::impl::TorchDispatchModeTLS::any_modes_set())
    return nullptr;
  return dynamic_cast<StepWeights*>(step->next_edge(first).function.get());
}

std::shared_ptr<StepWeights::Sum> StepWeights::sum_of_this_pass(bool create) {
  const std::lock_guard guard(mutex_);
  const int pass = torch::autograd::get_current_graph_task_id();
  if (const auto found = sums_.find(pass); found != sums_.end()) return found->second.lock();
  if (!create) return nullptr;
  const auto sum = std::make_shared<Sum>();
  torch::autograd::Engine::get_default_engine().queue_callback([sum] {});
  for (auto other = sums_.begin(); other != sums_.end();)
    other = other->second.expired() ? sums_.erase(other) : std::next(other);
  sums_.emplace(pass, sum);
  return sum;
}

void StepWeights::add(const OneStepFactors& step) { sum_of_this_pass(true)->add(step); }

variable_list StepWeights::apply(variable_list&& gradients) {
  has_run_ = true;
  TORCH_CHECK(std::any_of(next_edges().begin(), next_edges().end(),
                          [](const auto& edge) { return edge.is_valid(); }),
              "lstm: another thread freed the graph of these steps");
  const auto sum = sum_of_this_pass(false);
  if (!sum) return std::move(gradients);
  std::vector<Tensor> of_steps = sum->result(input_metadata(0).dtype().toScalarType());
  of_steps.push_back(of_steps.back().clone());  // b_hh has b_ih's
  for (size_t k = 0; k < gradients.size(); ++k)
    gradients[k] = gradients[k].defined() ? gradients[k] + of_steps[k] : of_steps[k];
  return std::move(gradients);
}

void StepWeights::Sum::add(const OneStepFactors& step) {
  // A product of so many rows takes little longer a row than one of more, and what it reads is in
  // the cache. Without a limit a long loop would keep all its gradients of gates.
  constexpr int64_t kRows = 1024;
  rows_ += step.d_gates.size(1);
  // Copies: after this step anybody may write to its input and state, or free them.
  steps_.push_back({step.input.clone(), step.h_0.clone(), step.d_gates});
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
