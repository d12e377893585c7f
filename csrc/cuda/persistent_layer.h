// The persistent engine of a layer: GEMMs and memory around the launches, in ATen.
#pragma once
#include <c10/cuda/CUDAStream.h>

#include <optional>
#include <vector>

#include "../stepwise/input.h"
#include "../stepwise/zoneout.h"
#include "choice.h"
#include "device_sequence.h"
#include "persistent.h"
#include "stepwise_kernels.h"

namespace fastlstm {

// Memory through which blocks exchange values: all bits set, which means that there are none yet.
inline Tensor unwritten(at::IntArrayRef shape, const at::TensorOptions& options) {
  const Tensor tensor = at::empty(shape, options);
  check_cuda(
      cudaMemsetAsync(tensor.data_ptr(), 0xff, tensor.nbytes(), c10::cuda::getCurrentCUDAStream()),
      "cudaMemsetAsync");
  return tensor;
}

// Rows as blocks load them: `width` values, with zeros behind those that are there, from a multiple
// of 16 bytes on.
inline Tensor exchangeable(const Tensor& rows, int64_t width) {
  const int64_t padding = width - rows.size(-1);
  if (padding > 0) return at::constant_pad_nd(rows, {0, padding});
  const Tensor contiguous = rows.contiguous();
  const bool aligned = reinterpret_cast<uintptr_t>(contiguous.data_ptr()) % 16 == 0;
  return aligned ? contiguous : contiguous.clone();
}

// Runs launch(first direction) for as many directions at a time as the plan says. False where the
// device refuses the first launch, which is remembered.
template <typename Launch>
bool launch_directions(const Layer& layer, const PlannedCall& planned, const char* name,
                       Launch launch) {
  for (int64_t d = 0; d < layer.num_directions(); d += planned.plan.tiling.directions) {
    const cudaError_t error = launch(d);
    if (d == 0 && !planned.by_name && is_refusal(error)) {
      Refusals::add(current_device(), error);
      return false;
    }
    check_cuda(error, name);
  }
  return true;
}

inline Tensor as_sequence(const Tensor& flat, const Layer& layer, bool per_direction) {
  return flat.view_symint(layer.sequence(flat.size(-1), per_direction));
}

// Empty where the device refuses the launch: then `gates` [D,R,4H] holds the input's part of the
// first tiling.directions directions.
template <typename T>
std::optional<ForwardResult> persistent_forward(const Layer& layer, const PlannedCall& planned,
                                                bool save_cells, bool save_gates, Tensor& gates) {
  const int64_t directions = layer.num_directions(), rows = layer.flat_rows.expect_int();
  const int64_t hidden = layer.hidden_size.expect_int();
  const auto options = layer.input.options(), state_options = options.dtype(at::kFloat);
  const Tensor input = stepwise::flat(layer.input, rows);
  const Tensor c_0 = layer.c_0.to(state_options).contiguous();
  const Tensor h_n = layer.h_0.clone(at::MemoryFormat::Contiguous), c_n = c_0.clone();
  const Tensor h_mask = stepwise::contiguous_or_undefined(layer.h_mask);
  const int64_t width = planned.plan.tiling.exchange_width;
  const Tensor h_0 = exchangeable(h_mask.defined() ? h_n * h_mask : layer.h_0, width);
  const Tensor exchange = unwritten({rows, directions * width}, options);
  const bool separate = h_mask.defined() || width != hidden;
  const Tensor output = separate ? at::empty({rows, directions * hidden}, options) : exchange;
  const stepwise::ZoneoutRows<T> zones(layer);
  const Tensor cells = at::empty({save_cells ? directions : 0, rows, hidden}, state_options);
  gates = at::empty({directions, rows, 4 * hidden}, options);
  const DeviceSequence tables(layer, planned.plan.tiling.group_rows > planned.plan.tiling.row_tile);

  PersistentForward<T> call{};
  call.sequence = tables.sequence;
  call.save_gates = save_gates;
  call.output_stride = directions * hidden;
  call.exchange_stride = directions * width;
  std::vector<Tensor> w_hh;
  const auto launch = [&](int64_t first) {
    call.first_reverse = first == 1;
    for (int64_t d = first; d < first + planned.plan.tiling.directions; ++d) {
      const Direction& w = layer.directions[d];
      Tensor x_gates = gates[d];
      stepwise::multiply_input(layer, w, input, x_gates);
      w_hh.push_back(w.w_hh.contiguous());
      call.direction[d - first] = {data<T>(w_hh.back()),
                                   data<T>(h_0[d]),
                                   data<float>(c_0[d]),
                                   data<T>(x_gates),
                                   data<T>(output) + d * hidden,
                                   data<T>(exchange) + d * width,
                                   save_cells ? data<float>(cells[d]) : nullptr,
                                   data<T>(h_n[d]),
                                   data<float>(c_n[d]),
                                   h_mask.defined() ? data<T>(h_mask[d]) : nullptr,
                                   zones.all(d)};
    }
    return launch_persistent_forward(call, planned.task, planned.plan.tiling,
                                     c10::cuda::getCurrentCUDAStream());
  };
  if (!launch_directions(layer, planned, "launch_persistent_forward", launch)) return std::nullopt;
  return ForwardResult{as_sequence(output, layer, false), h_n, c_n.to(layer.c_0.scalar_type()),
                       save_cells ? as_sequence(cells, layer, true) : at::empty({0}, state_options),
                       save_gates ? as_sequence(gates, layer, true) : at::empty({0}, options)};
}

template <typename T>
std::optional<BackwardResult> persistent_backward(const Layer& layer, const PlannedCall& planned,
                                                  Saved& saved, const OutputGrads& grads,
                                                  const GradientRequest& request) {
  const int64_t directions = layer.num_directions(), rows = layer.flat_rows.expect_int();
  const int64_t hidden = layer.hidden_size.expect_int();
  const auto options = layer.input.options(), state_options = options.dtype(at::kFloat);
  const Tensor c_0 = layer.c_0.to(state_options).contiguous();
  const Tensor output = stepwise::flat(saved.output, rows);
  const Tensor cells = saved.cells.contiguous().view({directions, rows, hidden});
  const Tensor d_output = grads.output.defined() ? stepwise::flat(grads.output, rows) : Tensor();
  const Tensor d_cells = grads.cells.defined() ? grads.cells.contiguous().view_as(cells) : Tensor();
  const Tensor d_h = grads.h_n.defined()
                         ? grads.h_n.clone(at::MemoryFormat::Contiguous)
                         : at::zeros({directions, layer.batch.expect_int(), hidden}, options);
  const Tensor d_c = grads.c_n.defined()
                         ? grads.c_n.to(state_options, false, /*copy=*/true).contiguous()
                         : at::zeros_like(c_0);
  const int64_t width = planned.plan.tiling.exchange_width;
  std::vector<Tensor> d_gates;
  for (int64_t d = 0; d < directions; ++d) d_gates.push_back(unwritten({rows, 4 * width}, options));
  const DeviceSequence tables(layer, planned.plan.tiling.group_rows > planned.plan.tiling.row_tile);
  const Tensor input = stepwise::flat(stepwise::without_padding(layer), rows);
  const auto h_prev_of = [&](int64_t d) {
    return previous_hidden<T>(layer, tables.sequence, d, output.narrow(1, d * hidden, hidden));
  };
  if (!saved.gates.defined()) {  // not made where their gradient will lie: that must be unwritten
    saved.gates = at::empty({directions, rows, 4 * hidden}, options);
    for (int64_t d = 0; d < directions; ++d)
      stepwise::make_gates<T, float, CudaKernels>(layer, d, input, h_prev_of(d), saved.gates[d]);
  }
  const Tensor gates = saved.gates.contiguous().view({directions, rows, 4 * hidden});
  const Tensor h_mask = stepwise::contiguous_or_undefined(layer.h_mask);
  const stepwise::ZoneoutRows<T> zones(layer);

  PersistentBackward<T> call{};
  call.sequence = tables.sequence;
  call.d_output_stride = directions * hidden;
  call.state_needs_grad = request.state;
  std::vector<Tensor> w_hh;
  const auto launch = [&](int64_t first) {
    call.first_reverse = first == 1;
    for (int64_t d = first; d < first + planned.plan.tiling.directions; ++d) {
      w_hh.push_back(layer.directions[d].w_hh.contiguous());
      call.direction[d - first] = {data<T>(w_hh.back()),
                                   data<float>(c_0[d]),
                                   data<T>(gates[d]),
                                   data<float>(cells[d]),
                                   d_output.defined() ? data<T>(d_output) + d * hidden : nullptr,
                                   d_cells.defined() ? data<float>(d_cells[d]) : nullptr,
                                   data<T>(d_gates[d]),
                                   data<T>(d_h[d]),
                                   data<float>(d_c[d]),
                                   h_mask.defined() ? data<T>(h_mask[d]) : nullptr,
                                   zones.all(d)};
    }
    return launch_persistent_backward(call, planned.task, planned.plan.tiling,
                                      c10::cuda::getCurrentCUDAStream());
  };
  if (!launch_directions(layer, planned, "launch_persistent_backward", launch)) return std::nullopt;
  for (Tensor& of : d_gates)  // a copy where there is padding
    of = of.view({rows, 4, width}).narrow(2, 0, hidden).reshape({rows, 4 * hidden});

  Tensor grad_input =
      request.input ? at::empty({rows, input.size(1)}, options) : at::empty({0}, options);
  std::vector<Tensor> grad_weights;
  for (int64_t d = 0; d < directions; ++d) {
    if (request.per_row) {
      grad_weights.push_back(d_gates[d].view(saved.gates[d].sizes()));
    } else {
      const Tensor h_prev = h_prev_of(d);
      const Tensor transposed = d_gates[d].t();
      grad_weights.push_back(at::mm(transposed, input));
      grad_weights.push_back(at::mm(transposed, h_prev));
      if (layer.has_bias()) grad_weights.push_back(d_gates[d].sum(0));
    }
    if (!request.input) continue;
    if (d == 0)
      at::mm_out(grad_input, d_gates[d], layer.directions[d].w_ih);
    else
      grad_input.addmm_(d_gates[d], layer.directions[d].w_ih);
  }
  return BackwardResult{request.input ? grad_input.view(layer.input.sizes()) : grad_input, d_h,
                        d_c.to(layer.c_0.scalar_type()), grad_weights};
}

}  // namespace fastlstm
