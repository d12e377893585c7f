// The persistent engine for a layer: the memory of a launch, and ATen's GEMMs before and after it.
#pragma once
#include "../stepwise/backward.h"
#include "choice.h"

namespace fastlstm {

// Launches the walk, one or two directions at a time as `tiling` says. direction_of(d) returns the
// arguments of a direction. Immediately before the first launch all bits of `exchange` are set
// (persistent.h), so that the memory is still in L2 when the kernel starts.
template <typename Args, typename DirectionOf>
void launch_directions(Args& args, const LayerCall& layer, const Tiling& tiling,
                       const Tensor& exchange, const DirectionOf& direction_of) {
  const auto stream = c10::cuda::getCurrentCUDAStream();
  args.sequence.wait_limit = wait_limit_milliseconds();
  for (int64_t first = 0; first < layer.num_directions(); first += tiling.directions) {
    args.first_reverse = first == 1;
    for (int k = 0; k < tiling.directions; ++k) args.direction[k] = direction_of(first + k);
    if (first == 0)
      check_cuda(cudaMemsetAsync(exchange.data_ptr(), 0xff, exchange.nbytes(), stream),
                 "cudaMemsetAsync");
    const cudaError_t error = launch_walk(args, tiling, stream);
    TORCH_CHECK(error == cudaSuccess, "lstm: the launch of the persistent engine with ",
                tiling.blocks(), " blocks at once failed: ", cudaGetErrorString(error),
                ". If MPS or another program holds multiprocessors, FASTLSTM_FREE_SMS=N leaves "
                "it N of them; the engine \"stepwise\" serves every call.");
  }
}

template <typename T>
ForwardResult persistent_forward(const LayerCall& layer, const Tiling& tiling,
                                 const ForwardOptions& options) {
  const Sizes s = layer.sizes();
  const int64_t hidden = s.hidden_size, width = tiling.exchange_width;
  const Tensor input = flat(layer.input, s.flat_rows);
  // Gates that are not saved need memory too, for the input's part of the gates.
  ForwardTensors tensors(layer, {options.save_cells, /*save_gates=*/true, options.engine});
  const Tensor h_0 = padded_and_aligned(layer.h_0, width);
  const Tensor exchange =
      width == hidden ? tensors.output
                      : at::empty({s.flat_rows, s.directions * width}, layer.input.options());
  const DeviceSequence on_device(layer, tiling.has_passes());

  ForwardLaunch<T> args{};
  args.sequence = on_device.sequence;
  args.save_gates = options.save_gates;
  args.output_stride = s.directions * hidden;
  args.exchange_stride = s.directions * width;
  const auto direction_of = [&](int64_t d) -> ForwardDirection<T> {
    Tensor x_gates = flat(tensors.gates[d], s.flat_rows);
    stepwise::multiply_input(layer, layer.directions[d], input, x_gates);
    ForwardDirection<T> pointers{};
    pointers.w_hh = data<T>(on_device.w_hh[d]), pointers.h_0 = data<T>(h_0[d]);
    pointers.gates = data<T>(x_gates), pointers.output = data<T>(tensors.output) + d * hidden;
    pointers.exchange = data<T>(exchange) + d * width;
    if (options.save_cells) pointers.cells = data<float>(tensors.cells[d]);
    pointers.h_n = data<T>(tensors.h_n[d]), pointers.c_n = data<float>(tensors.c_n[d]);
    return pointers;
  };
  launch_directions(args, layer, tiling, exchange, direction_of);
  if (!options.save_gates) tensors.gates = Tensor();
  return tensors.result(layer);
}

template <typename T>
BackwardResult persistent_backward(const LayerCall& layer, const Tiling& tiling,
                                   const BackwardArguments& in) {
  stepwise::BackwardTensors tensors(layer, in);
  const Sizes& s = tensors.sizes;
  const int64_t hidden = s.hidden_size, width = tiling.exchange_width;
  const DeviceSequence on_device(layer, tiling.has_passes());
  const Tensor d_gates = at::empty({s.directions, s.flat_rows, 4 * width}, layer.input.options());

  BackwardLaunch<T> args{};
  args.sequence = on_device.sequence;
  args.d_output_stride = s.directions * hidden;
  args.state_needs_grad = in.request.state;
  const auto direction_of = [&](int64_t d) -> BackwardDirection<T> {
    BackwardDirection<T> pointers{};
    pointers.w_hh = data<T>(on_device.w_hh[d]), pointers.c_0 = data<float>(tensors.c_0[d]);
    pointers.gates = data<T>(tensors.gates[d]), pointers.cells = data<float>(tensors.cells[d]);
    if (tensors.d_output.defined()) pointers.d_output = data<T>(tensors.d_output) + d * hidden;
    if (tensors.d_cells.defined()) pointers.d_cells = data<float>(tensors.d_cells[d]);
    pointers.d_gates = data<T>(d_gates[d]), pointers.d_h = data<T>(tensors.grad_h_0[d]);
    pointers.d_c = data<float>(tensors.grad_c_0[d]);
    return pointers;
  };
  launch_directions(args, layer, tiling, d_gates, direction_of);
  for (int64_t d = 0; d < s.directions; ++d) {
    const Tensor unpadded = d_gates[d].view({s.flat_rows, 4, width}).narrow(2, 0, hidden);
    const Tensor flat_d_gates = unpadded.reshape({s.flat_rows, 4 * hidden});  // copies if padded
    tensors.add_gradients(layer.directions[d], flat_d_gates, flat_d_gates, flat_d_gates, [&] {
      return multiplied_hidden(layer, d, tensors.columns_of(tensors.output, d));
    });
  }
  return tensors.result();
}

}  // namespace fastlstm
