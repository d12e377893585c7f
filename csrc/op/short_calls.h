// The forward ops as plain functions: the same calls through the dispatcher, a few microseconds
// cheaper than torch.ops, which matters when a call makes a single step.
#pragma once
#include <ATen/core/grad_mode.h>
#include <ATen/record_function.h>

#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "core/call.h"
#include "core/layer.h"
#include "core/operators.h"
#include "core/packed.h"

namespace fastlstm::short_calls {

// The op without save_gates; its arguments are those of the schema.
inline std::tuple<Tensor, Tensor, Tensor, Tensor> lstm(
    const Tensor& input, const Tensor& h_0, const Tensor& c_0, const std::vector<Tensor>& weights,
    const std::string& layout, const OptionalTensor& batch_sizes, const OptionalTensor& lengths,
    const OptionalTensor& reset, const OptionalTensor& h_mask, bool save_cells,
    const std::string& engine) {
  auto [output, h_n, c_n, cells, gates] =
      call_lstm({input, h_0, c_0, weights, layout, batch_sizes, lengths, reset, h_mask},
                {save_cells, /*save_gates=*/false, engine});
  return {output, h_n, c_n, save_cells ? cells : Tensor()};
}

// input [B,I], h and c [B,H]
inline std::tuple<Tensor, Tensor> lstm_cell(const Tensor& input, const Tensor& h, const Tensor& c,
                                            const std::vector<Tensor>& weights,
                                            const std::string& layout, const std::string& engine) {
  // Without gradients the five views need no tracking, which costs as much as a small step.
  std::optional<at::AutoDispatchBelowADInplaceOrView> guard;
  if (!at::GradMode::is_enabled()) guard.emplace();
  const Tensor x = input.unsqueeze(0), h_0 = h.unsqueeze(0), c_0 = c.unsqueeze(0);
  const LstmCall call{x, h_0, c_0, weights, layout};
  const auto [output, h_n, c_n, cells, gates] =
      call_lstm(call, {/*save_cells=*/false, /*save_gates=*/false, engine});
  // Backward needs the output again, so the user must not write to it; h_n is a copy for them. To
  // autograd what they get is no view: hooks of a view are lost when it is written to.
  return {at::_unsafe_view(h_n, h_n.sizes().slice(1)), at::_unsafe_view(c_n, c_n.sizes().slice(1))};
}

// Without the dispatcher: there is no gradient and one device.
inline PackedResult lstm_packed(const Tensor& input, const Tensor& h_0, const Tensor& c_0,
                                const std::vector<Tensor>& weights, const std::string& layout,
                                const OptionalTensor& batch_sizes, const OptionalTensor& lengths,
                                const OptionalTensor& reset, bool save_cells) {
  RECORD_FUNCTION("fastlstm::lstm_packed", std::vector<c10::IValue>());
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  const Tensor x = in_memory(input), h = in_memory(h_0), c = in_memory(c_0);
  auto [output, h_n, c_n, cells] =
      lstm_packed_cpu({x, h, c, weights, layout, batch_sizes, lengths, reset}, {save_cells});
  return {output, h_n, c_n, save_cells ? cells : Tensor()};  // None is made faster than a tensor
}

inline std::tuple<Tensor, Tensor> lstm_cell_packed(const Tensor& input, const Tensor& h_0,
                                                   const Tensor& c_0,
                                                   const std::vector<Tensor>& weights,
                                                   const std::string& layout) {
  RECORD_FUNCTION("fastlstm::lstm_packed", std::vector<c10::IValue>());
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  const Tensor x = in_memory(input), h = in_memory(h_0), c = in_memory(c_0);
  if (x.dim() == 2 && h.dim() == 2 && c.dim() == 2)
    if (const auto step = lstm_packed_one_step({x, h, c, weights, layout})) return *step;
  const auto [output, h_n, c_n, cells] = lstm_packed_cpu(
      {x.unsqueeze(0), h.unsqueeze(0), c.unsqueeze(0), weights, layout}, {/*save_cells=*/false});
  return {h_n.squeeze(0), c_n.squeeze(0)};
}

}  // namespace fastlstm::short_calls
