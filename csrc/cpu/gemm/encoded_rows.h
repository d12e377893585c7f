// Rows of a layer in the form in which a product takes them: rounded to bfloat16 or int8, or 16
// bits widened to float32.
#pragma once
#include <ATen/Parallel.h>

#include <vector>

#include "cpu/scratch.h"
#include "cpu/targets/kernels.h"
#include "pointers.h"

namespace fastlstm {

// Whether rows of T, of 16 bits, are multiplied in the dtype of their sums.
template <typename T, typename W>
constexpr bool kWidens = !std::is_same_v<T, W> && std::is_same_v<W, State_t<T>>;

// A weight of T for products of W, which is T, bfloat16 or float.
template <typename T, typename W>
at::Tensor encoded_weight(const at::Tensor& w) {
  if constexpr (std::is_same_v<T, W>) return w.contiguous();
  return w.to(std::is_same_v<W, bfloat16> ? at::kBFloat16 : at::kFloat).contiguous();
}

// Rows of T, K elements each, in a buffer of `count` places.
template <typename T, typename W>
class EncodedRows {
 public:
  EncodedRows(int64_t count, int64_t K)
      : K_(K),
        size_(kWidens<T, W> ? K : product_of<W>().encoded_size(K)),
        rows_(scratch<W>(count * size_)),
        zeros_(size_) {}

  // What stands for `zeros`, recognizable by its address.
  const W* zeros(const T*) const { return zeros_.data(); }
  const W* encode(const T* row, int64_t place) const {
    W* const to = data<W>(rows_) + place * size_;
    if constexpr (kWidens<T, W>)
      for (int64_t k = 0; k < K_; ++k) to[k] = W(row[k]);
    else
      product_of<W>().encode(row, K_, to);
    return to;
  }
  std::vector<const W*> encode(const std::vector<const T*>& rows) const {
    std::vector<const W*> encoded(rows.size());
    at::parallel_for(0, rows.size(), 1 + (1 << 15) / K_, [&](int64_t r, int64_t last) {
      for (; r < last; ++r) encoded[r] = encode(rows[r], r);
    });
    return encoded;
  }

 private:
  int64_t K_, size_;
  at::Tensor rows_;
  std::vector<W> zeros_;
};

// Those that the product takes as they are.
template <typename T>
class EncodedRows<T, T> {
 public:
  EncodedRows(int64_t, int64_t) {}
  const T* zeros(const T* zeros) const { return zeros; }
  const T* encode(const T* row, int64_t) const { return row; }
  std::vector<const T*> encode(std::vector<const T*> rows) const { return rows; }
};

}  // namespace fastlstm
