// The stepwise engine's kernels for a GPU, as csrc/stepwise/ calls them.
#pragma once
#include <c10/cuda/CUDAStream.h>

#include "../core/layer.h"
#include "../stepwise/forward.h"
#include "device_sequence.h"
#include "launch.h"

namespace fastlstm {

struct CudaStepKernels : stepwise::AtenProducts {
  static void run(const auto& step) {
    check_cuda(launch_step(step, c10::cuda::getCurrentCUDAStream()), "launch_step");
  }
};

// A single step in as many launches as nn.LSTMCell has: two products and a kernel, which adds the
// biases and takes the state from h_0 and c_0 to h_n and c_n.
template <typename T, typename A>
ForwardResult one_step(const Layer& layer, bool save_cells, bool save_gates) {
  const Sizes s = layer.sizes();
  const ForwardTensors to(layer, save_cells, save_gates, /*copies_state=*/false);
  const Tensor input = flat(layer.input, s.batch);
  const Tensor h_0 = layer.h_0.contiguous(), c_0 = layer.c_0.contiguous();
  const Tensor seen = layer.h_mask ? h_0 * *layer.h_mask : h_0;
  for (int64_t d = 0; d < s.directions; ++d) {
    const Direction& w = layer.directions[d];
    const stepwise::DirectionWalk walk(layer, d);
    auto step = walk.begin<OneStepForward, T, A>(walk.steps()[0]);
    const Tensor b_ih = layer.has_bias() ? w.b_ih.contiguous() : Tensor();
    const Tensor b_hh = layer.has_bias() ? w.b_hh.contiguous() : Tensor();
    if (layer.has_bias()) step.b_ih = const_data<T>(b_ih), step.b_hh = const_data<T>(b_hh);
    step.h_0 = const_data<T>(h_0[d]), step.h_state = data<T>(to.h_n[d]);
    if (c_0.scalar_type() == layer.state_options().dtype())
      step.c_0 = const_data<A>(c_0[d]), step.c_n = data<A>(to.c_n[d]);
    else
      step.c_0_narrow = const_data<T>(c_0[d]), step.c_n_narrow = data<T>(to.c_n[d]);
    step.output = data<T>(to.output) + d * s.hidden_size;
    step.output_stride = s.directions * s.hidden_size;
    if (save_cells) step.cells = data<A>(to.cells[d]);
    if (save_gates) step.gates = data<T>(to.gates[d]);
    const Tensor from_x = at::mm(input, w.w_ih.t()), from_h = at::mm(seen[d], w.w_hh.t());
    step.x_gates = const_data<T>(from_x), step.h_gates = const_data<T>(from_h);
    CudaStepKernels::run(step);
  }
  return to.result(layer);
}

}  // namespace fastlstm
