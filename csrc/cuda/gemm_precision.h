// TF32 in the GEMMs of a call, as nn.LSTM has it.
#pragma once
#include <ATen/Context.h>

#include <mutex>

namespace fastlstm {

// While it lives, float32 GEMMs use TF32 exactly if torch.backends.cudnn.allow_tf32 says so, as
// those of nn.LSTM do. ATen has this switch for the whole process only, so overlapping calls share
// one change of it: the first makes it, the last undoes it. (The older allowTF32CuBLAS refuses
// to answer if the user has set torch.backends.cuda.matmul.fp32_precision.)
class GemmPrecision {
  using Precision = at::Float32Precision;

 public:
  explicit GemmPrecision(at::ScalarType dtype) : active_(dtype == at::kFloat) {
    if (!active_) return;
    const std::lock_guard<std::mutex> lock(mutex_);
    if (users_++ > 0) return;
    auto& context = at::globalContext();
    before_ = context.float32Precision(at::Float32Backend::CUDA, at::Float32Op::MATMUL);
    const bool tf32 = context.allowTF32CuDNN(at::Float32Op::RNN);
    changed_ = tf32 != (before_ == Precision::TF32);
    if (changed_) set(tf32 ? Precision::TF32 : Precision::IEEE);
  }
  ~GemmPrecision() {
    if (!active_) return;
    const std::lock_guard<std::mutex> lock(mutex_);
    if (--users_ == 0 && changed_) set(before_);
  }
  GemmPrecision(const GemmPrecision&) = delete;
  GemmPrecision& operator=(const GemmPrecision&) = delete;

 private:
  static void set(Precision precision) {
    at::globalContext().setFloat32Precision(at::Float32Backend::CUDA, at::Float32Op::MATMUL,
                                            precision);
  }

  static inline std::mutex mutex_;
  static inline int users_ = 0;
  static inline Precision before_ = Precision::NONE;
  static inline bool changed_ = false;
  const bool active_;
};

}  // namespace fastlstm
