// The persistent engine for a layer: the memory of a launch, and ATen's GEMMs before and after it.
#pragma once
#include <c10/cuda/CUDAStream.h>

#include <vector>

#include "../stepwise/backward.h"
#include "choice.h"
#include "device_sequence.h"
#include "persistent.h"

namespace fastlstm {

// Returns W_hh [4H,H] of each direction, contiguous.
inline std::vector<Tensor> contiguous_w_hh(const LayerCall& layer) {
  std::vector<Tensor> w_hh;
  for (const Direction& w : layer.directions) w_hh.push_back(w.w_hh.contiguous());
  return w_hh;
}

// Launches the walk, one or two directions at a time as `tiling` says. direction_of(d) returns the
// arguments of a direction. All bits of `exchange` are set (persistent.h) last before the first
// launch, so that the memory is still in L2 when the kernel starts.
template <typename Call, typename DirectionOf>
void launch_directions(Call& call, const LayerCall& layer, const Tiling& tiling,
                       const Tensor& exchange, const DirectionOf& direction_of) {
  const auto stream = c10::cuda::getCurrentCUDAStream();
  call.sequence.wait_limit = wait_limit();
  for (int64_t first = 0; first < layer.num_directions(); first += tiling.directions) {
    call.first_reverse = first == 1;
    for (int k = 0; k < tiling.directions; ++k) call.direction[k] = direction_of(first + k);
    if (first == 0)
      check_cuda(cudaMemsetAsync(exchange.data_ptr(), 0xff, exchange.nbytes(), stream),
                 "cudaMemsetAsync");
    const cudaError_t error = launch_walk(call, tiling, stream);
    TORCH_CHECK(error == cudaSuccess, "lstm: the launch of the persistent engine with ",
                tiling.blocks(), " blocks at once failed: ", cudaGetErrorString(error),
                ". If MPS or another program holds multiprocessors, FASTLSTM_FREE_SMS=N leaves "
                "it N of them; the engine \"stepwise\" serves every call.");
  }
}

template <typename T>
ForwardResult persistent_forward(const LayerCall& layer, const Tiling& tiling, bool save_cells,
                                 bool save_gates) {
  const Sizes s = layer.sizes();
  const int64_t hidden = s.hidden_size, width = tiling.exchange_width;
  const auto options = layer.input.options();
  const Tensor input = flat(layer.input, s.flat_rows);
  // Even if gates are not saved, their memory holds the input's part of the gates.
  ForwardTensors tensors(layer, save_cells, /*save_gates=*/true);
  const Tensor h_0 = exchangeable(layer.h_0, width);
  const Tensor exchange =
      width == hidden ? tensors.output : at::empty({s.flat_rows, s.directions * width}, options);
  const DeviceSequence tables(layer, tiling.has_passes());
  const std::vector<Tensor> w_hh = contiguous_w_hh(layer);

  ForwardLaunch<T> call{};
  call.sequence = tables.sequence;
  call.save_gates = save_gates;
  call.output_stride = s.directions * hidden;
  call.exchange_stride = s.directions * width;
  const auto direction_of = [&](int64_t d) -> ForwardDirection<T> {
    Tensor x_gates = flat(tensors.gates[d], s.flat_rows);
    stepwise::multiply_input(layer, layer.directions[d], input, x_gates);
    return {data<T>(w_hh[d]),
            data<T>(h_0[d]),
            data<T>(x_gates),
            data<T>(tensors.output) + d * hidden,
            data<T>(exchange) + d * width,
            save_cells ? data<float>(tensors.cells[d]) : nullptr,
            data<T>(tensors.h_n[d]),
            data<float>(tensors.c_n[d])};
  };
  launch_directions(call, layer, tiling, exchange, direction_of);
  if (!save_gates) tensors.gates = Tensor();
  return tensors.result(layer);
}

template <typename T>
BackwardResult persistent_backward(const LayerCall& layer, const Tiling& tiling,
                                   const BackwardArguments& in) {
  stepwise::BackwardTensors tensors(layer, in);
  const Sizes& s = tensors.sizes;
  const int64_t hidden = s.hidden_size, width = tiling.exchange_width;
  const auto options = layer.input.options();
  const DeviceSequence tables(layer, tiling.has_passes());
  const Tensor d_gates = at::empty({s.directions, s.flat_rows, 4 * width}, options);
  const std::vector<Tensor> w_hh = contiguous_w_hh(layer);

  BackwardLaunch<T> call{};
  call.sequence = tables.sequence;
  call.d_output_stride = s.directions * hidden;
  call.state_needs_grad = in.request.state;
  const auto direction_of = [&](int64_t d) -> BackwardDirection<T> {
    return {data<T>(w_hh[d]),
            data<float>(tensors.c_0[d]),
            data<T>(tensors.gates[d]),
            data<float>(tensors.cells[d]),
            tensors.d_output.defined() ? data<T>(tensors.d_output) + d * hidden : nullptr,
            tensors.d_cells.defined() ? data<float>(tensors.d_cells[d]) : nullptr,
            data<T>(d_gates[d]),
            data<T>(tensors.grad_h_0[d]),
            data<float>(tensors.grad_c_0[d])};
  };
  launch_directions(call, layer, tiling, d_gates, direction_of);
  for (int64_t d = 0; d < s.directions; ++d) {
    const Tensor rows = d_gates[d].view({s.flat_rows, 4, width}).narrow(2, 0, hidden);
    const Tensor dense = rows.reshape({s.flat_rows, 4 * hidden});  // copies if width > hidden
    tensors.add_gradients(layer.directions[d], dense, dense, dense, [&] {
      return multiplied_hidden(layer, d, tensors.of_direction(tensors.output, d));
    });
  }
  return tensors.result();
}

}  // namespace fastlstm
