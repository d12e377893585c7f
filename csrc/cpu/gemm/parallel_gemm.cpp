#include "cpu/gemm/parallel_gemm.h"

#include <ATen/Parallel.h>
#include <ATen/TensorIterator.h>

#include <algorithm>
#include <atomic>

#include "cpu/targets/kernels.h"

namespace fastlstm {
namespace {

// With fewer multiply-adds, waking another thread costs more than it helps.
constexpr int64_t kMultiplyAddsOfAThread = 1 << 18;
// With fewer rows, loading all panels in one more thread costs more than it helps.
constexpr int64_t kRowsOfAThread = 24;
// Up to this size the panels of a weight gradient are small compared with c. Then all panels are
// multiplied together, so that each row of c is written as a whole.
constexpr int64_t kBytesOfSmallPanels = 128 << 10;

constexpr int64_t kBlockRows = 96;
// With fewer terms in the sums of a weight gradient, writing c takes the time. Then each thread
// writes one block, which its cache may hold: PyTorch's threads add gradients in the same blocks.
// PyTorch adds gradients of at most GRAIN_SIZE elements in one thread.
constexpr int64_t kMinTerms = 16;

// Divides rows, at least one, into blocks and calls body(begin, end) for each block. Thread i
// begins with block i and then takes the next ones. `multiply_adds`: the work for one row.
void for_row_blocks(const GemmKernels& gemm, int64_t rows, int64_t block_rows,
                    int64_t multiply_adds, const auto& body) {
  const int64_t threads = std::min({int64_t(at::get_num_threads()), divide_up(rows, kRowsOfAThread),
                                    1 + rows * multiply_adds / (2 * kMultiplyAddsOfAThread)});
  // A multiple of the number of threads: otherwise most threads would wait for the last block.
  const int64_t blocks = round_up(divide_up(rows, block_rows), threads);
  std::atomic<int64_t> next = threads;
  at::parallel_for(0, threads, 1, [&](int64_t i, int64_t end) {
    const ThreadStateGuard guard(gemm);
    for (; i < end; ++i)
      for (int64_t k = i; k < blocks; k = next++) body(k * rows / blocks, (k + 1) * rows / blocks);
  });
}

}  // namespace

void parallel_gemm(const std::vector<const void*>& a, const Matrix& matrix, const Destination& to) {
  const GemmKernels& gemm = matrix.gemm();
  const int64_t rows = a.size(), panels = matrix.panel_count(), threads = at::get_num_threads();
  const int64_t multiply_adds = matrix.K() * matrix.N();
  const auto multiply = [&](int64_t begin, int64_t end, const Range& group) {
    Scratch buffer;
    Destination part = to;
    part.rows += begin;
    matrix.multiply_panels(group, a.data() + begin, end - begin,
                           to.c_is_16_bit ? matrix.K() : gemm.kc, part, buffer);
  };
  // Threads share the panels if a block of rows for each thread would be too small. They also share
  // the panels if nothing is packed in advance, so that each weight is read once.
  const bool few_rows = rows <= gemm.min_rows_per_panel_load ||
                        (rows < kRowsOfAThread * threads &&
                         panels >= std::min(threads, divide_up(rows, kRowsOfAThread)));
  if (matrix.form() == MatrixForm::kPanels && !few_rows)
    return for_row_blocks(gemm, rows, kBlockRows, multiply_adds,
                          [&](int64_t begin, int64_t end) { multiply(begin, end, {0, panels}); });
  const int64_t grain = divide_up(kMultiplyAddsOfAThread, 1 + rows * multiply_adds / panels);
  at::parallel_for(0, panels, grain, [&](int64_t begin, int64_t end) {
    const ThreadStateGuard guard(gemm);
    multiply(0, rows, {begin, end});
  });
}

void parallel_gemm_into(const std::vector<const void*>& a, const Matrix& matrix,
                        const std::vector<void*>& c, Dtype dtype, bool accumulate) {
  const bool is_16_bit = bytes_of(dtype) == 2;
  if (!is_16_bit || matrix.gemm().takes(dtype))
    return parallel_gemm(a, matrix,
                         {.rows = c.data(), .accumulate = accumulate, .c_is_16_bit = is_16_bit});
  const int64_t rows = a.size(), N = matrix.N();
  const Scratch sums = scratch<float>(rows * N);
  parallel_gemm(a, matrix, {row_pointers(sums.data<float>(), rows, N).data()});
  dispatch_dtype(dtype, [&](auto t) {
    at::parallel_for(0, rows, divide_up(kElementsPerThread, N), [&](int64_t r, int64_t end) {
      for (; r < end; ++r) {
        const float* const from = sums.data<float>() + r * N;
        auto* const to = static_cast<decltype(t)*>(c[r]);
        for (int64_t n = 0; n < N; ++n)
          to[n] = decltype(t)(accumulate ? float(to[n]) + from[n] : from[n]);
      }
    });
  });
}

void weight_gradient_gemm(const GemmKernels& gemm, const std::vector<const void*>& a, int64_t M,
                          const std::vector<WeightGradient>& gradients, void* grad_bias,
                          bool accumulate) {
  const int64_t rows = a.size(), bytes_of_sum = bytes_of(gemm.sum_dtype);
  std::vector<std::vector<void*>> c;
  for (const auto& [b, to] : gradients)
    c.push_back(row_pointers(static_cast<char*>(to.data_ptr()), M, to.size(1) * to.element_size()));
  // Without rows the loop runs once and writes zeros, unless there is something to add to.
  for (int64_t r = 0; r < rows || (r == 0 && !accumulate); r += kRowsPerSum, accumulate = true) {
    const int64_t K = std::min(kRowsPerSum, rows - r);
    std::vector<Matrix> b_panels;
    int64_t multiply_adds = 0;  // for a row of c
    for (const auto& [b, to] : gradients) {
      const int64_t b_rows = b.size(), begin = std::min(r, b_rows), end = std::min(r + K, b_rows);
      const int64_t terms = end - begin, N = to.size(1);
      const bool small = gemm.bytes(terms * N) <= kBytesOfSmallPanels;
      b_panels.emplace_back(gemm,
                            MatrixSource{{b.begin() + begin, b.begin() + end}, false, terms, N},
                            small && gemm.takes(gemm.sum_dtype) ? Matrix::kAllTogether : 1);
      multiply_adds += (M * N > at::internal::GRAIN_SIZE ? std::max(terms, kMinTerms) : terms) * N;
    }
    const int64_t block_rows = K < kMinTerms ? M : kBlockRows;
    for_row_blocks(gemm, M, block_rows, multiply_adds, [&](int64_t begin, int64_t end) {
      const int64_t count = end - begin, bytes_of_row = gemm.bytes_of_row(K);
      const Scratch transposed(count * bytes_of_row);
      gemm.transpose(a.data() + r, K, begin, end, transposed.data<char>());
      const auto a_rows = row_pointers<const char>(transposed.data<char>(), count, bytes_of_row);
      if (grad_bias)
        gemm.sum_rows(a_rows.data(), count, K, static_cast<char*>(grad_bias) + begin * bytes_of_sum,
                      accumulate);
      Scratch buffer;
      for (size_t i = 0; i < b_panels.size(); ++i)
        b_panels[i].multiply_panels(
            {0, b_panels[i].panel_count()}, a_rows.data(), count, kRowsPerSum,
            {c[i].data() + begin, nullptr, accumulate, gradients[i].c.element_size() == 2}, buffer);
    });
  }
}

}  // namespace fastlstm
