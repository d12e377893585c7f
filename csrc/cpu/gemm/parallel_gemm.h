// Products by all threads: of the rows of many time steps with a matrix, and for the gradients of
// weights. Within one time step each thread has its own part of a matrix (cpu/walk/threads.h).
#pragma once
#include "cpu/gemm/matrix.h"

namespace fastlstm {

// Multiplies all rows of a by a matrix.
void parallel_gemm(const std::vector<const void*>& a, const Matrix& matrix, const Destination& to);

// Computes c[r] = a[r] * matrix, or c[r] += a[r] * matrix if `accumulate`. Each c[r] is a row [N]
// of `dtype`. If it has 16 bits, the float32 sums are rounded once, at the end.
void parallel_gemm_into(const std::vector<const void*>& a, const Matrix& matrix,
                        const std::vector<void*>& c, Dtype dtype, bool accumulate);

// The number of rows r in a partial sum. A weight gradient adds partial sums.
constexpr int64_t kRowsPerSum = 1024;

// The gradient c [M,N] of one weight: c[m][n] = or += the sum of a[r][m] * b[r][n] over all rows r.
struct WeightGradient {
  // [R] rows [N] in GemmKernels::source_format. Rows of zeros at the end may be left out.
  std::vector<const void*> b;
  // Contiguous, of sum_dtype. If at most kRowsPerSum rows are summed in all, c may have 16 bits.
  at::Tensor c;
};

// Computes several weight gradients that have the same rows a, and the gradient of the bias if
// `grad_bias` [M] is not nullptr: grad_bias[m] = or += the sum of a[r][m]. It multiplies only as
// many rows of a and b at a time as fit into the caches. b is packed into panels. Threads share
// blocks of columns of a and transpose them: a column of a gives a row of c.
void weight_gradient_gemm(const GemmKernels& gemm, const std::vector<const void*>& a, int64_t M,
                          const std::vector<WeightGradient>& gradients, void* grad_bias,
                          bool accumulate);

}  // namespace fastlstm
