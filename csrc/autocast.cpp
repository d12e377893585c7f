// Autocast keys: like nn.LSTM, the op runs in the autocast dtype (gates in 16 bits, cell state in
// float32). The cache of casts keeps a weight's cast copy for the region.
#include <ATen/autocast_mode.h>
#include <torch/library.h>

#include "ops.h"

namespace fastlstm {
namespace {

template <c10::DeviceType device, c10::DispatchKey key>
ForwardResult lstm_autocast(const Tensor& input, const Tensor& h_0, const Tensor& c_0,
                            at::TensorList weights, const OptionalTensor& batch_sizes,
                            const OptionalTensor& lengths, const OptionalTensor& reset,
                            const OptionalTensor& h_mask, const OptionalTensor& zoneout_h,
                            const OptionalTensor& zoneout_c, bool save_cells, bool save_gates,
                            bool recompute, c10::string_view engine) {
  c10::impl::ExcludeDispatchKeyGuard guard(key);
  const auto dtype = at::autocast::get_autocast_dtype(device);
  const auto cast = [dtype](const Tensor& tensor) {
    return at::autocast::cached_cast(dtype, tensor, device);
  };
  const auto cast_mask = [&cast](const OptionalTensor& mask) {
    return mask ? OptionalTensor(cast(*mask)) : std::nullopt;
  };
  return call_lstm(cast(input), cast(h_0), cast(c_0),
                   at::autocast::cached_cast(dtype, weights, device), batch_sizes, lengths, reset,
                   cast_mask(h_mask), cast_mask(zoneout_h), cast_mask(zoneout_c), save_cells,
                   save_gates, recompute, engine);
}

}  // namespace
}  // namespace fastlstm

TORCH_LIBRARY_IMPL(fastlstm, AutocastCPU, m) {
  m.impl("lstm", &fastlstm::lstm_autocast<c10::DeviceType::CPU, c10::DispatchKey::AutocastCPU>);
}

TORCH_LIBRARY_IMPL(fastlstm, AutocastCUDA, m) {
  m.impl("lstm", &fastlstm::lstm_autocast<c10::DeviceType::CUDA, c10::DispatchKey::AutocastCUDA>);
}
