// The CUDA side of the ops, ATen part and kernels, for CPU tensors: torch.ops.fastlstm_emulated.*
// Built and used by tests/cuda/test_cuda_op.py; csrc/op and the rest come from the installed
// extension.
#include <torch/library.h>

#undef TORCH_LIBRARY_IMPL  // instead of the CUDA key of the real ops
#define TORCH_LIBRARY_IMPL(ns, key, m) [[maybe_unused]] static void registration(torch::Library& m)
#include "../../../csrc/cuda/lstm_cuda.cpp"

TORCH_LIBRARY(fastlstm_emulated, m) {
  m.def("lstm", fastlstm::op<fastlstm::lstm_cuda>);
  m.def("lstm_backward", fastlstm::op<fastlstm::lstm_backward_cuda>);
  // The device: persistent launches of more than `blocks` blocks are refused, with this error of
  // CUDA.
  simt::resident_blocks() = runtime::shared().sm_count;
  m.def("refuse", [](int64_t blocks, int64_t error) {
    simt::resident_blocks() = static_cast<unsigned>(blocks);
    simt::refusal() = static_cast<cudaError_t>(error);
  });
  // For which compute capability the kernels were compiled.
  m.def("set_code", [](int64_t code) { runtime::shared().code = static_cast<int>(code); });
  // An error of every call of the runtime that asks about the device, as under an old driver.
  m.def("set_driver_error",
        [](int64_t error) { runtime::shared().driver_error = static_cast<cudaError_t>(error); });
  m.def("cuda_device", fastlstm::cuda_device_of);
  // The current device and stream.
  m.def("use", [](int64_t device, int64_t stream) {
    runtime::thread().device = static_cast<int>(device);
    runtime::thread().stream = reinterpret_cast<cudaStream_t>(stream);
  });
  // What the runtime was asked for since the last call: kind (of runtime::Event), device, stream,
  // bytes, blocks.
  m.def("take_events", [] {
    std::vector<std::vector<int64_t>> events;
    for (const auto& e : std::exchange(runtime::shared().events, {}))
      events.push_back({e.kind, e.device, reinterpret_cast<int64_t>(e.stream),
                        static_cast<int64_t>(e.bytes), e.blocks});
    return events;
  });
}
