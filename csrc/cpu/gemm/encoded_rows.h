// Encodes rows of T with K elements each in the format that GEMM kernels multiply. Rows that have
// this format are not copied. 16-bit rows that do not have it are widened to float32.
#pragma once
#include <ATen/Parallel.h>

#include <vector>

#include "cpu/products/gemm_kernels.h"
#include "cpu/scratch.h"
#include "parts.h"

namespace fastlstm {

template <typename T>
class EncodedRows {
 public:
  // `count`: the rows that the buffer holds. `packs`: the rows will be packed into panels, which
  // may need another format than rows that are multiplied by panels.
  EncodedRows(const GemmKernels& gemm, int64_t count, int64_t K, bool packs = false)
      : encode_(encoder(gemm, packs)), K_(K) {
    if (!encode_ || count == 0) return;
    bytes_ = encode_ == widen ? K * int64_t(sizeof(float)) : gemm.encoded_bytes(K);
    rows_ = Scratch(count * bytes_);
    zeros_.resize(bytes_);
  }

  // Returns the encoded row of zeros, which always has the same address. `row`: K zeros.
  const void* zeros(const T* row) const {
    return encode_ ? static_cast<const void*>(zeros_.data()) : row;
  }
  // Encodes a row into row `index` of the buffer, and returns the encoded row.
  const void* encode(const T* row, int64_t index) const {
    if (!encode_) return row;
    void* const to = rows_.data<char>() + index * bytes_;
    encode_(row, K_, to);
    return to;
  }
  // Encodes all rows, with all threads.
  std::vector<const void*> encode(const std::vector<const T*>& rows) const {
    std::vector<const void*> encoded(rows.begin(), rows.end());
    if (!encode_) return encoded;
    const int64_t grain = divide_up(kElementsPerThread, K_);
    at::parallel_for(0, rows.size(), grain, [&](int64_t r, int64_t end) {
      for (; r < end; ++r) encoded[r] = encode(rows[r], r);
    });
    return encoded;
  }

 private:
  // Returns nullptr if rows need no encoding.
  static decltype(GemmKernels::encode) encoder(const GemmKernels& gemm, bool packs) {
    const Format wanted = packs ? gemm.source_format : gemm.format;
    if (format_of(dtype_of_type<T>) == wanted && wanted == gemm.source_format) return nullptr;
    return sizeof(T) == 2 ? widen : gemm.encode;
  }
  static void widen(const void* row, int64_t K, void* to) {
    for (int64_t k = 0; k < K; ++k)
      static_cast<float*>(to)[k] = float(static_cast<const T*>(row)[k]);
  }

  decltype(GemmKernels::encode) encode_;
  int64_t K_, bytes_ = 0;
  Scratch rows_;
  std::vector<char> zeros_;
};

}  // namespace fastlstm
