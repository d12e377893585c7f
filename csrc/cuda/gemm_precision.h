// TF32 in the GEMMs of a call, as nn.LSTM has it.
#pragma once
#include <mutex>

#include "../core/torch_versions.h"

namespace fastlstm {

// While it lives, float32 GEMMs use TF32 exactly if torch.backends.cudnn.allow_tf32 says so, as
// those of nn.LSTM do. ATen has this switch for the whole process only, so overlapping calls share
// one change of it: the first makes it, the last undoes it. (The older allowTF32CuBLAS refuses
// to answer if the user has set torch.backends.cuda.matmul.fp32_precision.)
class GemmPrecision {
 public:
  explicit GemmPrecision(at::ScalarType dtype) : active_(dtype == at::kFloat) {
    if (!active_) return;
    const std::lock_guard<std::mutex> lock(mutex_);
    if (users_++ > 0) return;
    before_ = matmul_precision();
    const bool tf32 = rnn_allows_tf32();
    changed_ = tf32 != (before_ == kTf32);
    if (changed_) set_matmul_precision(tf32 ? kTf32 : kIeee);
  }
  ~GemmPrecision() {
    if (!active_) return;
    const std::lock_guard<std::mutex> lock(mutex_);
    if (--users_ == 0 && changed_) set_matmul_precision(before_);
  }
  GemmPrecision(const GemmPrecision&) = delete;
  GemmPrecision& operator=(const GemmPrecision&) = delete;

 private:
  static inline std::mutex mutex_;
  static inline int users_ = 0;
  static inline Float32Precision before_ = kIeee;
  static inline bool changed_ = false;
  const bool active_;
};

}  // namespace fastlstm
