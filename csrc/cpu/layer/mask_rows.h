// The rows of a mask or of a share, and what is used where there is none.
#pragma once
#include "core/layer.h"
#include "cpu/dtypes.h"
#include "pointers.h"

namespace fastlstm {

// The rows of a tensor [...,size], or null pointers without one.
template <typename T>
class MaskRows {
 public:
  explicit MaskRows(const OptionalTensor& mask) {
    if (!mask) return;
    tensor_ = mask->contiguous();
    data_ = const_data<T>(tensor_);
    size_ = mask->size(-1);
  }
  explicit operator bool() const { return tensor_.defined(); }
  const T* at(int64_t row) const { return data_ ? data_ + row * size_ : nullptr; }
  int64_t size() const { return size_; }

 private:
  Tensor tensor_;
  const T* data_ = nullptr;
  int64_t size_ = 0;
};

}  // namespace fastlstm
