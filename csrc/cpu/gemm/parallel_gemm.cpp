#include "cpu/gemm/parallel_gemm.h"

namespace fastlstm {

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
  if (matrix.form() == MatrixForm::kPanels && (panels == 0 || !few_rows))
    return for_row_blocks(gemm, rows, multiply_adds,
                          [&](int64_t begin, int64_t end) { multiply(begin, end, {0, panels}); });
  const int64_t grain = divide_up(kMultiplyAddsOfAThread, 1 + rows * multiply_adds / panels);
  at::parallel_for(0, panels, grain, [&](int64_t first, int64_t last) {
    const ThreadSeries series(gemm);
    multiply(0, rows, {first, last});
  });
}

template <typename T>
void parallel_gemm_into(const std::vector<const void*>& a, const Matrix& matrix,
                        const std::vector<void*>& c, bool accumulate) {
  constexpr bool kIs16Bit = sizeof(T) == 2;
  if (!kIs16Bit || matrix.gemm().takes(dtype_of_rows<T>))
    return parallel_gemm(a, matrix,
                         {.rows = c.data(), .accumulate = accumulate, .c_is_16_bit = kIs16Bit});
  const int64_t rows = a.size(), N = matrix.N();
  const Scratch sums = scratch<float>(rows * N);
  parallel_gemm(a, matrix, {row_pointers(sums.data<float>(), rows, N).data()});
  at::parallel_for(0, rows, 1 + (1 << 15) / N, [&](int64_t r, int64_t last) {
    for (; r < last; ++r) {
      const float* const from = sums.data<float>() + r * N;
      T* const to = static_cast<T*>(c[r]);
      for (int64_t n = 0; n < N; ++n) to[n] = T(accumulate ? float(to[n]) + from[n] : from[n]);
    }
  });
}
#define FASTLSTM_INSTANTIATE(T, A, name)                                              \
  template void parallel_gemm_into<T>(const std::vector<const void*>&, const Matrix&, \
                                      const std::vector<void*>&, bool);
FASTLSTM_FOR_EACH_DTYPE(FASTLSTM_INSTANTIATE)
#undef FASTLSTM_INSTANTIATE

}  // namespace fastlstm
