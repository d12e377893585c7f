// Multiplies so many rows of a and b at a time that they stay in the caches. b is packed into
// panels. Threads share blocks of columns of a and transpose them: a column of a gives a row of c.
#include "cpu/gemm/weight_gradient_gemm.h"

#include <algorithm>
#include <cstring>

#include "cpu/gemm/parallel_gemm.h"

namespace fastlstm {
namespace {

constexpr int64_t kRowsAtATime = 1024;
// Up to this size the panels of b are small compared with c. Then all panels are multiplied
// together, so that each row of c is written as a whole.
constexpr int64_t kBytesOfSmallPanels = 128 << 10;

}  // namespace

void weight_gradient_gemm(const GemmKernels& gemm, const std::vector<const void*>& a, int64_t M,
                          const std::vector<WeightGradient>& gradients, void* bias,
                          bool accumulate) {
  const int64_t rows = a.size(), bytes_of_sum = bytes_of(gemm.sum_dtype);
  std::vector<std::vector<void*>> c;
  for (const auto& [b, N, to] : gradients) {
    c.push_back(row_pointers(static_cast<char*>(to), M, N * bytes_of_sum));
    if (rows == 0 && !accumulate) std::memset(to, 0, M * N * bytes_of_sum);
  }
  if (bias && rows == 0 && !accumulate) std::memset(bias, 0, M * bytes_of_sum);
  for (int64_t r = 0; r < rows; r += kRowsAtATime, accumulate = true) {
    const int64_t K = std::min(kRowsAtATime, rows - r);
    std::vector<Matrix> packed;
    int64_t multiply_adds = 0;  // for a row of c
    for (const auto& [b, N, to] : gradients) {
      const int64_t b_rows = b.size(), begin = std::min(r, b_rows), end = std::min(r + K, b_rows);
      const bool small = gemm.bytes((end - begin) * N) <= kBytesOfSmallPanels;
      packed.emplace_back(gemm,
                          MatrixSource{{b.begin() + begin, b.begin() + end}, false, end - begin, N},
                          small && gemm.takes(gemm.sum_dtype) ? Matrix::kAllTogether : 1);
      multiply_adds += (end - begin) * N;
    }
    for_row_blocks(gemm, M, multiply_adds, [&](int64_t begin, int64_t end) {
      const int64_t count = end - begin, bytes_of_row = gemm.bytes_of_row(K);
      const Scratch transposed(count * bytes_of_row);
      gemm.transpose(a.data() + r, K, begin, end, transposed.data<char>());
      const auto a_rows = row_pointers<const char>(transposed.data<char>(), count, bytes_of_row);
      if (bias)
        gemm.sum_rows(a_rows.data(), count, K, static_cast<char*>(bias) + begin * bytes_of_sum,
                      accumulate);
      Scratch buffer;
      for (size_t i = 0; i < packed.size(); ++i)
        packed[i].multiply_panels({0, packed[i].panel_count()}, a_rows.data(), count, kRowsAtATime,
                                  {c[i].data() + begin, nullptr, accumulate}, buffer);
    });
  }
}

}  // namespace fastlstm
