// The Autocast keys. Like nn.LSTM, the op casts its tensors to the autocast dtype of 16 bits. One
// exception: on a CPU, a layer with a projection keeps a float32 c_0. Autocast caches the cast copy
// of a weight until the autocast region ends.
#include <ATen/autocast_mode.h>
#include <torch/library.h>

#include "core/call.h"

namespace fastlstm {
namespace {

template <at::DeviceType device>
ForwardResult lstm_autocast(LstmCall call, const ForwardOptions& options) {
  c10::impl::ExcludeDispatchKeyGuard guard(
      at::autocast::get_autocast_dispatch_key_from_device_type(device));
  const auto dtype = at::autocast::get_autocast_dtype(device);
  const Tensor c_0 = call.c_0;
  for_each_non_weight(call, [dtype](Tensor& tensor, const char*) {
    tensor = at::autocast::cached_cast(dtype, tensor, device);
  });
  const bool projects = WeightLayout::of(call.layout).projects;
  if (device == at::kCPU && projects && c_0.scalar_type() == at::kFloat) call.c_0 = c_0;
  call.weights = at::autocast::cached_cast(dtype, at::TensorList(call.weights), device);
  return call_lstm(call, options);
}

}  // namespace

TORCH_LIBRARY_IMPL(fastlstm, AutocastCPU, m) { m.impl("lstm", op<lstm_autocast<at::kCPU>>); }
TORCH_LIBRARY_IMPL(fastlstm, AutocastCUDA, m) { m.impl("lstm", op<lstm_autocast<at::kCUDA>>); }

}  // namespace fastlstm
