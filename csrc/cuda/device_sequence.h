// W_hh, the lengths and the resets of a call, as the persistent kernels read them on the device.
#pragma once
#include <ATen/ATen.h>
#include <c10/cuda/CUDAStream.h>

#include <numeric>
#include <vector>

#include "../core/layer_call.h"
#include "../pointers.h"
#include "persistent.h"

namespace fastlstm {

inline void check_cuda(cudaError_t error, const char* call) {
  TORCH_CHECK(error == cudaSuccess, "lstm: ", call, " failed: ", cudaGetErrorString(error));
}

// Returns rows [..., size] padded with zeros to `width` values, in 16-byte-aligned memory.
inline Tensor padded_and_aligned(const Tensor& rows, int64_t width) {
  const int64_t padding = width - rows.size(-1);
  if (padding > 0) return at::constant_pad_nd(rows, {0, padding});
  const Tensor dense = rows.contiguous();
  return reinterpret_cast<uintptr_t>(dense.data_ptr()) % 16 == 0 ? dense : dense.clone();
}

// W_hh of each direction, the `Sequence` of a call, and the tensors that own its memory.
struct DeviceSequence {
  std::vector<Tensor> w_hh;  // [4H,H], contiguous
  Tensor offsets_and_lengths, lengths, order, reset;
  Sequence sequence = {};

  // If `sorts_rows`, sorts by `lengths`: a pass (persistent_block.h) gets rows of similar length.
  DeviceSequence(const LayerCall& layer, bool sorts_rows) {
    for (const Direction& w : layer.directions) w_hh.push_back(w.w_hh.contiguous());
    const int64_t steps = layer.steps.expect_int(), batch = layer.batch.expect_int();
    sequence.steps = static_cast<int>(steps), sequence.batch = static_cast<int>(batch);
    sequence.hidden_size = static_cast<int>(layer.output_size.expect_int());
    if (layer.packed()) {
      const Tensor sizes = layer.batch_sizes->contiguous();
      const int64_t* size = sizes.const_data_ptr<int64_t>();
      std::vector<int64_t> host(steps);  // offsets, then lengths
      std::exclusive_scan(size, size + steps, host.begin(), int64_t(0));
      for (int64_t t = steps; t--;) host.resize(steps + size[t], t + 1);  // sizes do not increase
      const auto count = static_cast<int64_t>(host.size());
      offsets_and_lengths = at::empty({count}, layer.input.options().dtype(at::kLong));
      int64_t* const data = offsets_and_lengths.mutable_data_ptr<int64_t>();
      check_cuda(launch_upload(host.data(), count, data, c10::cuda::getCurrentCUDAStream()),
                 "launch_upload");
      sequence.offsets = data, sequence.lengths = data + steps;
    } else if (layer.lengths) {
      lengths = layer.lengths->contiguous();
      sequence.lengths = lengths.const_data_ptr<int64_t>();
      if (sorts_rows) order = at::argsort(lengths, /*dim=*/0, /*descending=*/true);
      sequence.order = data_or_null<int64_t>(order);
    }
    if (layer.reset) reset = layer.reset->contiguous();
    sequence.reset = data_or_null<bool>(reset);
  }
};

}  // namespace fastlstm
