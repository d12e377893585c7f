// CUDA key: checks the call, asks the planner for an engine, runs it. The only file that knows both
// ATen and CUDA; of CUDA's libraries it needs the runtime alone.
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <mutex>

#include "../stepwise.h"
#include "launch.h"

namespace fastlstm {
namespace {

void check_cuda(cudaError_t error, const char* call) {
  TORCH_CHECK(error == cudaSuccess, "lstm: ", call, " failed: ", cudaGetErrorString(error));
}

struct CudaKernels {
  template <typename T, typename A>
  static void forward(const StepForward<T, A>& step) {
    check_cuda(launch_step_forward(step, c10::cuda::getCurrentCUDAStream()), "launch_step_forward");
  }
  template <typename T, typename A>
  static void backward(const StepBackward<T, A>& step) {
    check_cuda(launch_step_backward(step, c10::cuda::getCurrentCUDAStream()),
               "launch_step_backward");
  }
};

// While it lives, float32 GEMMs use TF32 exactly if torch.backends.cudnn.allow_tf32 says so, as
// those of nn.LSTM do. ATen has this switch for the whole process only, so overlapping calls share
// one change of it: the first makes it, the last takes it back.
class GemmPrecision {
 public:
  explicit GemmPrecision(at::ScalarType dtype) : active_(dtype == at::kFloat) {
    if (!active_) return;
    const std::lock_guard<std::mutex> lock(mutex_);
    if (users_++ > 0) return;
    auto& context = at::globalContext();
    before_ = context.allowTF32CuBLAS();
    const bool wanted = context.allowTF32CuDNN(at::Float32Op::RNN);
    changed_ = wanted != before_;
    if (changed_) context.setAllowTF32CuBLAS(wanted);
  }
  ~GemmPrecision() {
    if (!active_) return;
    const std::lock_guard<std::mutex> lock(mutex_);
    if (--users_ == 0 && changed_) at::globalContext().setAllowTF32CuBLAS(before_);
  }
  GemmPrecision(const GemmPrecision&) = delete;
  GemmPrecision& operator=(const GemmPrecision&) = delete;

 private:
  static inline std::mutex mutex_;
  static inline int users_ = 0;
  static inline bool before_ = false, changed_ = false;
  const bool active_;
};

void check_engine(c10::string_view engine) {
  TORCH_CHECK(engine == "auto" || engine == "stepwise",
              "lstm: expected engine to be \"auto\" or \"stepwise\" on CUDA, got \"", engine, "\"");
}

ForwardResult lstm_cuda(const Tensor& input, const Tensor& h_0, const Tensor& c_0,
                        at::TensorList weights, const OptionalTensor& batch_sizes,
                        const OptionalTensor& lengths, const OptionalTensor& reset, bool save_cells,
                        bool save_gates, c10::string_view engine) {
  check_engine(engine);
  const Layer layer = check_layer(input, h_0, c_0, weights, batch_sizes, lengths, reset);
  check_values(layer);
  const c10::cuda::CUDAGuard device(input.device());
  const GemmPrecision precision(input.scalar_type());
  switch (input.scalar_type()) {
    case at::kDouble:
      return stepwise_forward<double, double, CudaKernels>(layer, save_cells, save_gates);
    case at::kBFloat16:
      return stepwise_forward<bfloat16, float, CudaKernels>(layer, save_cells, save_gates);
    case at::kHalf:
      return stepwise_forward<float16, float, CudaKernels>(layer, save_cells, save_gates);
    default:
      return stepwise_forward<float, float, CudaKernels>(layer, save_cells, save_gates);
  }
}

BackwardResult lstm_backward_cuda(const OptionalTensor& grad_output, const OptionalTensor& grad_h_n,
                                  const OptionalTensor& grad_c_n, const OptionalTensor& grad_cells,
                                  const Tensor& input, const Tensor& h_0, const Tensor& c_0,
                                  at::TensorList weights, const OptionalTensor& batch_sizes,
                                  const OptionalTensor& lengths, const OptionalTensor& reset,
                                  const Tensor& output, const Tensor& cells, const Tensor& gates,
                                  bool input_needs_grad, c10::string_view engine) {
  check_engine(engine);
  const Layer layer = check_layer(input, h_0, c_0, weights, batch_sizes, lengths, reset);
  check_values(layer);
  const Saved saved = check_saved(layer, output, cells, gates);
  const OutputGrads grads = check_grads(layer, grad_output, grad_h_n, grad_c_n, grad_cells);
  const c10::cuda::CUDAGuard device(input.device());
  const GemmPrecision precision(input.scalar_type());
  switch (input.scalar_type()) {
    case at::kDouble:
      return stepwise_backward<double, double, CudaKernels>(layer, saved, grads, input_needs_grad);
    case at::kBFloat16:
      return stepwise_backward<bfloat16, float, CudaKernels>(layer, saved, grads, input_needs_grad);
    case at::kHalf:
      return stepwise_backward<float16, float, CudaKernels>(layer, saved, grads, input_needs_grad);
    default:
      return stepwise_backward<float, float, CudaKernels>(layer, saved, grads, input_needs_grad);
  }
}

}  // namespace
}  // namespace fastlstm

TORCH_LIBRARY_IMPL(fastlstm, CUDA, m) {
  m.impl("lstm", &fastlstm::lstm_cuda);
  m.impl("lstm_backward", &fastlstm::lstm_backward_cuda);
}
