// The stepwise engine's kernels for a GPU, as csrc/stepwise/ calls them.
#pragma once
#include <c10/cuda/CUDAStream.h>

#include <vector>

#include "../core/layer.h"
#include "../stepwise/forward.h"
#include "device_sequence.h"
#include "launch.h"

namespace fastlstm {

struct CudaStepKernels : stepwise::AtenProducts {
  static void run(const auto& step) {
    check_cuda(launch_step(step, c10::cuda::getCurrentCUDAStream()), "launch_step");
  }
  template <typename T>
  static Tensor previous_hidden(const Layer& layer, int64_t d, const Tensor& output,
                                const std::vector<WalkStep>&) {
    const DeviceSequence tables(layer, /*sorted=*/false);
    return fastlstm::previous_hidden<T>(layer, tables.sequence, d, output);
  }
};

// A single step in as many launches as nn.LSTMCell has: two products and a kernel, which adds the
// biases, converts c and takes the state from h_0 and c_0 to h_n and c_n.
inline bool is_one_step(const Layer& layer) {
  return layer.steps.expect_int() == 1 && !layer.projects() && !layer.normalizes();
}

// C: the dtype of c_0.
template <typename T, typename A, typename C>
ForwardResult one_step(const Layer& layer, bool save_cells, bool save_gates) {
  const Sizes s = layer.sizes();
  const ForwardTensors to(layer, save_cells, save_gates, /*copies_state=*/false);
  const Tensor input = flat(layer.input, s.batch), c_0 = layer.c_0.contiguous();
  const Tensor h_0 = layer.h_0.contiguous();
  const Tensor cells = at::empty({s.batch, s.hidden_size}, layer.state_options());
  for (int64_t d = 0; d < s.directions; ++d) {
    const Direction& w = layer.directions[d];
    Tensor from_x = save_gates ? flat(to.gates[d], s.batch)
                               : at::empty({s.batch, 4 * s.hidden_size}, layer.input.options());
    at::mm_out(from_x, input, w.w_ih.t());
    stepwise::ForwardWalk<T, A, CudaStepKernels> only(layer, d, to, from_x);
    OneStepForward<T, A, C> step{only.prepare(walk(layer, d == 1)[0], h_0[d])};
    if (!save_cells) step.cells = data<A>(cells);
    step.c_state = step.cells;  // c_n may be of another dtype
    const Tensor b_ih = layer.has_bias() ? w.b_ih.contiguous() : Tensor();
    const Tensor b_hh = layer.has_bias() ? w.b_hh.contiguous() : Tensor();
    if (layer.has_bias()) step.b_ih = const_data<T>(b_ih), step.b_hh = const_data<T>(b_hh);
    step.h_0 = const_data<T>(h_0[d]);
    step.c_0 = const_data<C>(c_0[d]), step.c_n = data<C>(to.c_n[d]);
    CudaStepKernels::run(step);
  }
  return to.result(layer);
}

}  // namespace fastlstm
