// Typed pointers to the memory of tensors.
#pragma once
#include <ATen/core/Tensor.h>

#include <type_traits>
#include <vector>

#include "parts.h"

namespace fastlstm {

template <typename T>
T* data(const at::Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}
template <typename T>
const T* const_data(const at::Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}
// nullptr for an undefined tensor.
template <typename T>
const T* data_or_null(const at::Tensor& tensor) {
  return tensor.defined() ? const_data<T>(tensor) : nullptr;
}

// Untyped pointers to `rows` rows that lie `stride` elements apart. Kernels take rows in this form
// and know the dtype from elsewhere.
template <typename T>
auto row_pointers(T* first, int64_t rows, int64_t stride) {
  std::vector<std::conditional_t<std::is_const_v<T>, const void*, void*>> pointers(rows);
  for (int64_t r = 0; r < rows; ++r) pointers[r] = first + r * stride;
  return pointers;
}

}  // namespace fastlstm
