// Rows of a layer in the form in which a product takes them: as they are, in the product's own
// format, or 16 bits widened to float32.
#pragma once
#include <ATen/Parallel.h>

#include <vector>

#include "cpu/products/product.h"
#include "cpu/scratch.h"
#include "pointers.h"

namespace fastlstm {

// Rows of T, K elements each, in a buffer of `count` places.
template <typename T>
class EncodedRows {
 public:
  // As the product multiplies them, or as it packs them.
  EncodedRows(const Product& product, int64_t count, int64_t K, bool packs = false)
      : product_(product),
        as_they_are_(packs ? format_of(dtype_of_rows<T>) == product.given
                           : product.takes(dtype_of_rows<T>)),
        K_(K) {
    if (as_they_are_) return;
    bytes_ = kIsNarrow ? K * int64_t(sizeof(float)) : product.encoded_bytes(K);
    rows_ = scratch_bytes(count * bytes_);
    zeros_.resize(bytes_);
  }

  // What stands for `zeros`, recognizable by its address.
  const void* zeros(const T* zeros) const {
    if (as_they_are_) return zeros;
    return zeros_.data();
  }
  const void* encode(const T* row, int64_t place) const {
    if (as_they_are_) return row;
    void* const to = data<char>(rows_) + place * bytes_;
    if constexpr (kIsNarrow)
      for (int64_t k = 0; k < K_; ++k) static_cast<float*>(to)[k] = float(row[k]);
    else
      product_.encode(row, K_, to);
    return to;
  }
  // Pointers to rows of T, which may be pointers to void.
  template <typename Pointer>
  std::vector<const void*> encode(const std::vector<Pointer>& rows) const {
    std::vector<const void*> encoded(rows.begin(), rows.end());
    if (as_they_are_) return encoded;
    at::parallel_for(0, rows.size(), 1 + (1 << 15) / K_, [&](int64_t r, int64_t last) {
      for (; r < last; ++r) encoded[r] = encode(static_cast<const T*>(rows[r]), r);
    });
    return encoded;
  }

 private:
  static constexpr bool kIsNarrow = sizeof(T) == 2;

  const Product& product_;
  bool as_they_are_;
  int64_t K_, bytes_ = 0;
  at::Tensor rows_;
  std::vector<char> zeros_;
};

}  // namespace fastlstm
