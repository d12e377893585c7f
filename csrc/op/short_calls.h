// The forward ops as plain functions, a few microseconds cheaper than torch.ops, which matters when
// a call makes a single step. Where nothing but the CPU's kernel would see the call, they call it
// without the dispatcher.
#pragma once
#include <ATen/core/grad_mode.h>
#include <ATen/record_function.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include <algorithm>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "core/call.h"
#include "core/layer.h"
#include "core/operators.h"
#include "core/prepacked.h"

namespace fastlstm::short_calls {

// Whether a call records no gradient, and the dispatcher would find nothing above the CPU's kernel.
inline bool needs_only_the_cpu(const LstmCall& call) {
  bool needs_grad = false;
  c10::DispatchKeySet keys;
  const auto add = [&](const Tensor& tensor, const char* = nullptr) {
    keys = keys | tensor.key_set();
    needs_grad = needs_grad || tensor.requires_grad();
  };
  for_each_tensor(call, add);
  for (const Tensor& weight : call.weights) add(weight);
  if (needs_grad && at::GradMode::is_enabled()) return false;
  const auto local = c10::impl::tls_local_dispatch_key_set();
  const auto passed = c10::autograd_dispatch_keyset_with_ADInplaceOrView |
                      c10::DispatchKeySet(c10::DispatchKey::BackendSelect);
  return ((keys | local.included_) - local.excluded_ - passed).highestPriorityTypeId() ==
         c10::DispatchKey::CPU;
}

// The op without gates; cells are undefined if they are not saved.
inline ForwardResult run(LstmCall call, const ForwardOptions& options) {
  if (!needs_only_the_cpu(call)) {
    ForwardResult result = call_lstm(call, options);
    if (!options.save_cells) std::get<3>(result) = Tensor();
    return result;
  }
  RECORD_FUNCTION("fastlstm::lstm", std::vector<c10::IValue>());
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  return lstm_cpu(std::move(call), options);
}

// A state of zeros, whose sizes are those of the input and the weights.
inline void add_state(LstmCall& call) {
  const auto& w = call.weights;
  TORCH_CHECK(w.size() >= 2 && w[0].dim() == 2 && w[1].dim() == 2,
              "lstm: expected weights that begin with W_ih and W_hh, of 2 dimensions each");
  const auto count = static_cast<int64_t>(w.size()) / WeightLayout::of(call.layout).each();
  const auto batch = call.batch_sizes        ? call.batch_sizes->select(0, 0).item<int64_t>()
                     : call.input.dim() == 3 ? call.input.size(1)
                                             : 0;  // an error of the input
  const auto zeros = [&](int64_t size) {
    return at::zeros({count, batch, size}, call.input.options());
  };
  call.c_0 = zeros(w[0].size(0) / 4);
  call.h_0 = w[1].size(1) == call.c_0.size(2) ? call.c_0 : zeros(w[1].size(1));
}

inline LstmCall with_state(LstmCall call, const OptionalTensor& h_0, const OptionalTensor& c_0) {
  TORCH_CHECK(h_0.has_value() == c_0.has_value(),
              "lstm: expected h_0 and c_0, or None for both, got one of them");
  if (!h_0)
    add_state(call);
  else
    call.h_0 = *h_0, call.c_0 = *c_0;
  return call;
}

// The arguments of the op; without h_0 and c_0 they are zeros.
inline PackedResult lstm(const Tensor& input, const OptionalTensor& h_0, const OptionalTensor& c_0,
                         std::vector<Tensor> weights, std::string layout,
                         const OptionalTensor& batch_sizes, const OptionalTensor& lengths,
                         const OptionalTensor& reset, const OptionalTensor& h_mask, bool save_cells,
                         std::string engine) {
  LstmCall call{input,   {},    {},    std::move(weights), std::move(layout), batch_sizes,
                lengths, reset, h_mask};
  auto [output, h_n, c_n, cells, gates] = run(
      with_state(std::move(call), h_0, c_0), {save_cells, /*save_gates=*/false, std::move(engine)});
  return {std::move(output), std::move(h_n), std::move(c_n), std::move(cells)};
}

// Rows [B,size] as a step [1,B,size]; `alone`: nothing but the CPU's kernel sees it.
inline Tensor as_step(const Tensor& rows, bool alone) {
  if (!alone) return rows.unsqueeze(0);
  Tensor step = at::detail::make_tensor<c10::TensorImpl>(
      c10::TensorImpl::VIEW, c10::Storage(rows.storage()), rows.key_set(), rows.dtype());
  c10::SmallVector<int64_t, 4> sizes{1}, strides{0};
  sizes.append(rows.sizes().begin(), rows.sizes().end());
  strides.append(rows.strides().begin(), rows.strides().end());
  step.unsafeGetTensorImpl()->set_sizes_and_strides(sizes, strides, rows.storage_offset());
  return step;
}
// And back: a state that nobody else has.
inline Tensor as_rows(const Tensor& state, bool alone) {
  const c10::SmallVector<int64_t, 4> sizes(state.sizes().begin() + 1, state.sizes().end());
  // To autograd it is no view: hooks of a view are lost when it is written to.
  if (!alone) return at::_unsafe_view(state, sizes);
  state.unsafeGetTensorImpl()->set_sizes_contiguous(sizes);
  return state;
}

// input [B,I], h and c [B,H], or zeros
inline std::tuple<Tensor, Tensor> lstm_cell(const Tensor& input, const OptionalTensor& h,
                                            const OptionalTensor& c, std::vector<Tensor> weights,
                                            std::string layout, std::string engine) {
  LstmCall call{input, h.value_or(Tensor()), c.value_or(Tensor()), std::move(weights),
                std::move(layout)};
  const bool alone = needs_only_the_cpu(call);
  // Without gradients the views need no tracking, which costs as much as a small step.
  std::optional<at::AutoDispatchBelowADInplaceOrView> guard;
  if (!at::GradMode::is_enabled()) guard.emplace();
  const auto state = [&](const OptionalTensor& rows) {
    return rows ? OptionalTensor(as_step(*rows, alone)) : std::nullopt;
  };
  call.input = as_step(input, alone);
  const auto [output, h_n, c_n, cells, gates] =
      run(with_state(std::move(call), state(h), state(c)),
          {/*save_cells=*/false, /*save_gates=*/false, std::move(engine)});
  return {as_rows(h_n, alone), as_rows(c_n, alone)};
}

// Without the dispatcher: there is no gradient and one device.
inline PackedResult lstm_packed(const Tensor& input, const Tensor& h_0, const Tensor& c_0,
                                std::vector<Tensor> weights, std::string layout,
                                const OptionalTensor& batch_sizes, const OptionalTensor& lengths,
                                const OptionalTensor& reset, bool save_cells) {
  RECORD_FUNCTION("fastlstm::lstm_packed", std::vector<c10::IValue>());
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  return lstm_packed_cpu({in_memory(input), in_memory(h_0), in_memory(c_0), std::move(weights),
                          std::move(layout), batch_sizes, lengths, reset},
                         {save_cells});
}

inline std::tuple<Tensor, Tensor> lstm_cell_packed(const Tensor& input, const Tensor& h_0,
                                                   const Tensor& c_0, std::vector<Tensor> weights,
                                                   std::string layout) {
  RECORD_FUNCTION("fastlstm::lstm_packed", std::vector<c10::IValue>());
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  const auto step = [](const Tensor& rows) { return as_step(in_memory(rows), /*alone=*/true); };
  const auto [output, h_n, c_n, cells] =
      lstm_packed_cpu({step(input), step(h_0), step(c_0), std::move(weights), std::move(layout)},
                      {/*save_cells=*/false});
  return {as_rows(h_n, /*alone=*/true), as_rows(c_n, /*alone=*/true)};
}

}  // namespace fastlstm::short_calls
