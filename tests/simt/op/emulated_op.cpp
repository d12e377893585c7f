// The CUDA side of the ops, ATen part and kernels, for CPU tensors: torch.ops.fastlstm_emulated.*
// Built and used by tests/test_cuda_op.py; csrc/op and the rest come from the installed
// extension.
#include <torch/library.h>

#undef TORCH_LIBRARY_IMPL  // instead of the CUDA key of the real ops
#define TORCH_LIBRARY_IMPL(ns, key, m) [[maybe_unused]] static void registration(torch::Library& m)
#include "../../../csrc/cuda/lstm_cuda.cpp"

TORCH_LIBRARY(fastlstm_emulated, m) {
  m.def("lstm", fastlstm::forward_op<fastlstm::lstm_cuda>);
  m.def("lstm_backward", fastlstm::backward_op<fastlstm::lstm_backward_cuda>);
  m.def("set_resident_blocks",
        [](int64_t blocks) { simt::resident_blocks() = static_cast<unsigned>(blocks); });
  // Persistent launches of more than `blocks` blocks are refused with this error of CUDA; what was
  // refused before is forgotten.
  m.def("refuse", [](int64_t blocks, int64_t error) {
    simt::resident_blocks() = static_cast<unsigned>(blocks);
    simt::refusal() = static_cast<cudaError_t>(error);
    fastlstm::Refusals::forget();
  });
}
