// Rows of a layer in the form in which a product takes them: as they are, in the product's own
// format, or 16 bits widened to float32.
#pragma once
#include <ATen/Parallel.h>

#include <vector>

#include "cpu/products/gemm_kernels.h"
#include "cpu/scratch.h"
#include "pointers.h"

namespace fastlstm {

// Rows of T, K elements each, in a buffer of `count` places.
template <typename T>
class EncodedRows {
 public:
  // Rows that the product multiplies, or packs.
  EncodedRows(const GemmKernels& gemm, int64_t count, int64_t K, bool packs = false)
      : encode_(encoder(gemm, packs)), K_(K) {
    if (!encode_ || count == 0) return;
    bytes_ = encode_ == widen ? K * int64_t(sizeof(float)) : gemm.encoded_bytes(K);
    rows_ = Scratch(count * bytes_);
    zeros_.resize(bytes_);
  }

  // The row that stands for `zeros`, recognizable by its address.
  const void* zeros(const T* zeros) const {
    return encode_ ? static_cast<const void*>(zeros_.data()) : zeros;
  }
  const void* encode(const T* row, int64_t place) const {
    if (!encode_) return row;
    void* const to = rows_.data<char>() + place * bytes_;
    encode_(row, K_, to);
    return to;
  }
  // Pointers to rows of T, which may be pointers to void.
  template <typename Pointer>
  std::vector<const void*> encode(const std::vector<Pointer>& rows) const {
    std::vector<const void*> encoded(rows.begin(), rows.end());
    if (!encode_) return encoded;
    at::parallel_for(0, rows.size(), 1 + (1 << 15) / K_, [&](int64_t r, int64_t last) {
      for (; r < last; ++r) encoded[r] = encode(static_cast<const T*>(rows[r]), r);
    });
    return encoded;
  }

 private:
  using Encode = decltype(GemmKernels::encode);

  // nullptr: as they are.
  static Encode encoder(const GemmKernels& gemm, bool packs) {
    const Format wanted = packs ? gemm.source_format : gemm.format;
    if (format_of(dtype_of_rows<T>) == wanted && wanted == gemm.source_format) return nullptr;
    return sizeof(T) == 2 ? widen : gemm.encode;
  }
  static void widen(const void* row, int64_t K, void* to) {
    for (int64_t k = 0; k < K; ++k)
      static_cast<float*>(to)[k] = float(static_cast<const T*>(row)[k]);
  }

  Encode encode_;
  int64_t K_, bytes_ = 0;
  Scratch rows_;
  std::vector<char> zeros_;
};

}  // namespace fastlstm
