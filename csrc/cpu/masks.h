// Recurrent dropout and zoneout as rows of their masks.
#pragma once
#include "packed_matrix.h"
#include "rows.h"

namespace fastlstm {

// The rows of a mask [...,size], or null pointers without one.
template <typename T>
class MaskRows {
 public:
  explicit MaskRows(const OptionalTensor& mask) {
    if (!mask) return;
    tensor_ = mask->contiguous();
    data_ = const_data<T>(tensor_);
    size_ = mask->size(-1);
  }
  const T* at(int64_t row) const { return data_ ? data_ + row * size_ : nullptr; }

 private:
  Tensor tensor_;
  const T* data_ = nullptr;
  int64_t size_ = 0;
};

// to = row * mask, rounded to T; returns to.
template <typename T>
const T* masked(const T* row, const T* mask, int64_t size, T* to) {
  using A = State_t<T>;
  for (int64_t n = 0; n < size; ++n) to[n] = T(A(row[n]) * A(mask[n]));
  return to;
}

}  // namespace fastlstm
