// Tensors as typed pointers, and the arithmetic of cutting things into parts.
#pragma once
#include <ATen/ATen.h>

#include <vector>

namespace fastlstm {

template <typename T>
T* data(const at::Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}
template <typename T>
const T* const_data(const at::Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}

// Pointers to rows that lie `stride` elements apart.
template <typename T>
std::vector<T*> row_pointers(T* first, int64_t rows, int64_t stride) {
  std::vector<T*> pointers(rows);
  for (int64_t r = 0; r < rows; ++r) pointers[r] = first + r * stride;
  return pointers;
}

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Part `index` of [0, count) cut into `parts`.
struct Range {
  int64_t begin, end;
};
inline Range part_of(int64_t count, int64_t index, int64_t parts) {
  return {index * count / parts, (index + 1) * count / parts};
}

}  // namespace fastlstm
