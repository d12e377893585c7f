// The products of weight gradients, which sum over rows.
#pragma once
#include <vector>

#include "cpu/products/gemm_kernels.h"

namespace fastlstm {

// The gradient c [M,N] of one weight: c[m][n] = or += the sum of a[r][m] * b[r][n] over all rows r.
struct WeightGradient {
  // [R] rows [N] in GemmKernels::source_format. Rows of zeros at the end may be left out.
  std::vector<const void*> b;
  int64_t N;
  void* c;  // contiguous, of sum_dtype
};

// Computes several weight gradients that have the same rows a, and the gradient of the bias if
// `bias` [M] is not nullptr: bias[m] = or += the sum of a[r][m]. So `a` is transposed only once.
void weight_gradient_gemm(const GemmKernels& gemm, const std::vector<const void*>& a, int64_t M,
                          const std::vector<WeightGradient>& gradients, void* bias,
                          bool accumulate);

}  // namespace fastlstm
