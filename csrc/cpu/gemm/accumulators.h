// The buffer between the products of a step and the cell equations.
#pragma once
#include <c10/util/SmallVector.h>

#include <algorithm>
#include <cstring>

#include "cpu/gemm/matrix.h"

namespace fastlstm {

// Multiplies some rows by a few panels in one thread. The sums are in a buffer that stays in the L1
// cache until the cell equations have read it.
class Accumulators {
 public:
  // `vectors`: the largest number of vectors of columns in one call of `compute`.
  Accumulators(const GemmKernels& gemm, int64_t rows, int64_t vectors)
      : stride_(vectors * gemm.lanes),
        sums_(rows * stride_ * bytes_of(gemm.sum_dtype)),
        rows_(rows) {
    for (int64_t r = 0; r < rows; ++r)
      rows_[r] = sums_.data<char>() + r * stride_ * bytes_of(gemm.sum_dtype);
  }

  int64_t rows() const { return rows_.size(); }
  int64_t stride() const { return stride_; }  // elements from one row to the next

  // Multiplies rows by some neighboring panels, and adds the bias of their columns if it is not
  // nullptr. Returns the sums [rows, stride()] of sum_dtype. `zeros` is the address of the row of
  // zeros. If each a[r] is this address, the product is skipped, and the sums are zeros without the
  // bias. So 0 times an infinite weight is 0 if all rows are zeros, and NaN if there are others.
  const void* compute(const Matrix& matrix, const Range& panels, const void* const* a, int64_t rows,
                      int64_t kc, const void* zeros, const void* bias = nullptr) {
    if (std::all_of(a, a + rows, [zeros](const void* row) { return row == zeros; }))
      std::memset(rows_[0], 0, rows * stride_ * bytes_of(matrix.gemm().sum_dtype));
    else
      matrix.multiply_panels(panels, a, rows, kc,
                             {.rows = rows_.data(), .bias = bias, .whole_vectors = true}, buffer_);
    return rows_[0];
  }

 private:
  int64_t stride_;
  Scratch sums_, buffer_;
  c10::SmallVector<void*, 16> rows_;
};

}  // namespace fastlstm
