// Autocast keys: like nn.LSTM, the op runs in the autocast dtype (gates in 16 bits, cell state in
// float32). The cache of casts keeps a weight's cast copy for the region. As with nn.LSTM on a CPU,
// c_0 and c_n of a layer with a projection stay in float32 there.
#include <ATen/autocast_mode.h>
#include <torch/library.h>

#include "core/call.h"
#include "core/weights.h"

namespace fastlstm {
namespace {

template <c10::DeviceType device, c10::DispatchKey key>
ForwardResult lstm_autocast(const LstmCall& call, const ForwardOptions& options) {
  c10::impl::ExcludeDispatchKeyGuard guard(key);
  const auto dtype = at::autocast::get_autocast_dtype(device);
  const auto cast = [dtype](const Tensor& tensor) {
    return at::autocast::cached_cast(dtype, tensor, device);
  };
  const auto cast_mask = [&cast](const OptionalTensor& mask) {
    return mask ? OptionalTensor(cast(*mask)) : std::nullopt;
  };
  const int64_t directions = call.h_0.dim() > 0 ? call.h_0.sym_size(0).expect_int() : 0;
  const auto layout = WeightLayout::of(static_cast<int64_t>(call.weights.size()), directions);
  const bool keep_c = device == c10::DeviceType::CPU && layout && layout->projects &&
                      call.c_0.scalar_type() == at::kFloat;
  const Tensor input = cast(call.input), h_0 = cast(call.h_0);
  const Tensor c_0 = keep_c ? call.c_0 : cast(call.c_0);
  const std::vector<Tensor> weights = at::autocast::cached_cast(dtype, call.weights, device);
  const OptionalTensor h_mask = cast_mask(call.h_mask), zoneout_h = cast_mask(call.zoneout_h),
                       zoneout_c = cast_mask(call.zoneout_c);
  return call_lstm({input, h_0, c_0, weights, call.batch_sizes, call.lengths, call.reset, h_mask,
                    zoneout_h, zoneout_c},
                   options);
}

}  // namespace
}  // namespace fastlstm

TORCH_LIBRARY_IMPL(fastlstm, AutocastCPU, m) {
  using namespace fastlstm;
  m.impl("lstm", forward_op<lstm_autocast<c10::DeviceType::CPU, c10::DispatchKey::AutocastCPU>>);
}

TORCH_LIBRARY_IMPL(fastlstm, AutocastCUDA, m) {
  using namespace fastlstm;
  m.impl("lstm", forward_op<lstm_autocast<c10::DeviceType::CUDA, c10::DispatchKey::AutocastCUDA>>);
}
