// Eager calls of the forward op from Python (op/module.cpp describes the functions). A call skips
// the dispatcher if it records no gradient and no dispatch key above the CPU kernel is active.
#pragma once
#include <ATen/PythonTorchFunctionTLS.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/grad_mode.h>
#include <ATen/record_function.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>

#include <algorithm>
#include <cstring>
#include <iterator>

#include "core/operators.h"
#include "cpu/lstm_cpu.h"
#include "op/fast_method.h"

namespace fastlstm {

inline bool can_skip_dispatcher(const LstmCall& call) {
  bool needs_grad = false;
  c10::DispatchKeySet keys;
  const auto inspect = [&](const Tensor& tensor, const char* = nullptr) {
    keys = keys | tensor.key_set();
    needs_grad = needs_grad || tensor.requires_grad();
  };
  for_each_non_weight(call, inspect);
  for (const Tensor& weight : call.weights) inspect(weight);
  if (needs_grad && at::GradMode::is_enabled()) return false;
  const auto local = c10::impl::tls_local_dispatch_key_set();
  const auto ignored = c10::autograd_dispatch_keyset_with_ADInplaceOrView |
                       c10::DispatchKeySet(c10::DispatchKey::BackendSelect);
  return ((keys | local.included_) - local.excluded_ - ignored).highestPriorityTypeId() ==
         c10::DispatchKey::CPU;
}

// Calls the op, or its CPU kernel without the dispatcher. Unsaved cells are an undefined tensor.
inline ForwardResult call_eagerly(LstmCall call, const ForwardOptions& options) {
  if (!can_skip_dispatcher(call)) {
    ForwardResult result = call_lstm(call, options);
    if (!options.save_cells) std::get<3>(result) = Tensor();
    return result;
  }
  RECORD_FUNCTION("fastlstm::lstm", std::vector<c10::IValue>());
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  return lstm_cpu(std::move(call), options);
}

// Sets h_0 and c_0 to zeros, which are one tensor if the sizes are equal.
inline void set_zero_state(LstmCall& call, int64_t directions, int64_t batch, int64_t hidden_size,
                           int64_t output_size) {
  const auto zeros = [&](int64_t size) {
    return at::zeros({directions, batch, size}, call.input.options());
  };
  call.c_0 = zeros(hidden_size);
  call.h_0 = output_size == hidden_size ? call.c_0 : zeros(output_size);
}

inline LstmCall fill_state(LstmCall call) {
  TORCH_CHECK(call.h_0.defined() == call.c_0.defined(),
              "lstm: expected h_0 and c_0, or None for both, got one of them");
  if (call.h_0.defined()) return call;
  const auto& w = call.weights;
  TORCH_CHECK(w.size() >= 2 && w[0].dim() == 2 && w[1].dim() == 2,
              "lstm: expected weights that begin with W_ih and W_hh, of 2 dimensions each");
  int64_t batch = 0;  // stays 0 if the input has wrong dimensions: then the op raises an error
  if (call.input.dim() == 3) batch = call.input.size(1);
  if (call.batch_sizes) batch = call.batch_sizes->select(0, 0).item<int64_t>();
  set_zero_state(call, w.size() / WeightLayout::of(call.layout).weights_per_direction(), batch,
                 w[0].size(0) / 4, w[1].size(1));
  return call;
}

inline std::tuple<Tensor, Tensor, Tensor, Tensor> lstm(
    const Tensor& input, const OptionalTensor& h_0, const OptionalTensor& c_0,
    std::vector<Tensor> weights, std::string layout, const OptionalTensor& batch_sizes,
    const OptionalTensor& lengths, const OptionalTensor& reset, const OptionalTensor& h_mask,
    bool save_cells, std::string engine) {
  LstmCall call{input, h_0.value_or(Tensor()), c_0.value_or(Tensor()), std::move(weights),
                std::move(layout)};
  call.batch_sizes = batch_sizes, call.lengths = lengths, call.reset = reset, call.h_mask = h_mask;
  auto [output, h_n, c_n, cells, gates] = call_eagerly(
      fill_state(std::move(call)), {.save_cells = save_cells, .engine = std::move(engine)});
  return {std::move(output), std::move(h_n), std::move(c_n), std::move(cells)};
}

// Returns rows [B,size] as a sequence [1,B,size] of one step.
inline Tensor as_step(const Tensor& rows, bool skips_dispatcher) {
  if (!skips_dispatcher) return rows.unsqueeze(0);
  Tensor step = at::detail::make_tensor<c10::TensorImpl>(
      c10::TensorImpl::VIEW, c10::Storage(rows.storage()), rows.key_set(), rows.dtype());
  c10::SmallVector<int64_t, 4> sizes{1}, strides{rows.numel()};
  sizes.append(rows.sizes().begin(), rows.sizes().end());
  strides.append(rows.strides().begin(), rows.strides().end());
  step.unsafeGetTensorImpl()->set_sizes_and_strides(sizes, strides, rows.storage_offset());
  return step;
}
inline Tensor as_rows(const Tensor& state, bool skips_dispatcher) {
  const c10::SmallVector<int64_t, 4> sizes(state.sizes().begin() + 1, state.sizes().end());
  // A view would lose its autograd hooks if the user wrote it in place. _unsafe_view makes no view.
  if (!skips_dispatcher) return at::_unsafe_view(state, sizes);
  state.unsafeGetTensorImpl()->set_sizes_contiguous(sizes);
  return state;
}

inline std::tuple<Tensor, Tensor> lstm_cell(const Tensor& input, const OptionalTensor& h,
                                            const OptionalTensor& c, std::vector<Tensor> weights,
                                            std::string layout, std::string engine) {
  LstmCall call{input, h.value_or(Tensor()), c.value_or(Tensor()), std::move(weights),
                std::move(layout)};
  const bool skips_dispatcher = can_skip_dispatcher(call);
  // Autograd tracks views even without gradients. That would take as long as a small step.
  std::optional<at::AutoDispatchBelowADInplaceOrView> guard;
  if (!at::GradMode::is_enabled()) guard.emplace();
  for (Tensor* const rows : {&call.input, &call.h_0, &call.c_0})
    if (rows->defined()) *rows = as_step(*rows, skips_dispatcher);
  const auto [output, h_n, c_n, cells, gates] =
      call_eagerly(fill_state(std::move(call)), {.engine = std::move(engine)});
  return {as_rows(h_n, skips_dispatcher), as_rows(c_n, skips_dispatcher)};
}

}  // namespace fastlstm
