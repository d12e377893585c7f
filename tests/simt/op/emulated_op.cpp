// The CUDA part of the ops (the code with ATen, and the kernels in the emulator), for CPU tensors:
// torch.ops.fastlstm_emulated.*. tests/cuda/test_cuda_op.py builds and uses it. The other parts,
// such as csrc/op, are in the installed extension.
#include <torch/library.h>

#undef TORCH_LIBRARY_IMPL  // so that lstm_cuda.cpp does not register the real ops for CUDA
#define TORCH_LIBRARY_IMPL(ns, key, m) static void registration(torch::Library& m)
#include "../../../csrc/cuda/lstm_cuda.cpp"

TORCH_LIBRARY(fastlstm_emulated, m) {
  for (const std::string name : {"lstm", "lstm_backward"}) {
    auto& dispatcher = c10::Dispatcher::singleton();
    const auto& schema = dispatcher.findSchemaOrThrow(("fastlstm::" + name).c_str(), "").schema();
    m.def(schema.cloneWithName("fastlstm_emulated::" + name, ""));
  }
  registration(m);
  simt::resident_blocks() = runtime::state().sm_count;
  // Lets cooperative launches of more than `blocks` blocks fail with a CUDA error.
  m.def("refuse_larger_launches", [](int64_t blocks, int64_t error) {
    simt::resident_blocks() = static_cast<unsigned>(blocks);
    simt::refusal() = static_cast<cudaError_t>(error);
  });
  m.def("set_kernels", [](int64_t capability, int64_t error) {
    runtime::state().compiled_capability = static_cast<int>(capability);
    runtime::state().attributes_error = static_cast<cudaError_t>(error);
  });
  m.def("set_sms", [](int64_t count) { runtime::state().sm_count = static_cast<int>(count); });
  m.def("cuda_device", fastlstm::cuda_device_of);
  m.def("wait_limit", [] { return int64_t{fastlstm::wait_limit_milliseconds()}; });
  m.def("set_device_and_stream", [](int64_t device, int64_t stream) {
    runtime::thread().device = static_cast<int>(device);
    runtime::thread().stream = reinterpret_cast<cudaStream_t>(stream);
  });
  // Returns the runtime::Events since the last call, each as [kind, device, stream, bytes, blocks].
  m.def("take_events", [] {
    std::vector<std::vector<int64_t>> events;
    for (const auto& e : std::exchange(runtime::state().events, {}))
      events.push_back({e.kind, e.device, reinterpret_cast<int64_t>(e.stream),
                        static_cast<int64_t>(e.bytes), e.blocks});
    return events;
  });
}
