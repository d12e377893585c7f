// The kernel table of one target (csrc/README.md). The target's source file includes it once, after
// it has opened the instruction set (target_pragma.h) and defined FASTLSTM_ISA, Target, DotProduct.
//
// Functions that are compiled for a target are always-inline or in namespace FASTLSTM_ISA, so that
// the linker never merges copies for different targets (csrc/README.md, "Rules").
#pragma once
#include "cpu/cell/cell_kernels.h"
#include "cpu/products/int8_tiles.h"
#include "cpu/products/make_gemm.h"
#include "cpu/targets/kernels.h"

namespace fastlstm::FASTLSTM_ISA {

// The ThreadGroup (lstm_step.h) of a single thread, for the indices [begin, end) of a row. If a
// step needs sums over whole rows, [begin, end) is the whole row.
struct OneThread {
  int64_t begin, end;

  FASTLSTM_INLINE void each(int64_t n, const auto& f) const {
    const int64_t stop = smaller(end, n);
#pragma omp simd
    for (int64_t k = begin; k < stop; ++k) f(k);
  }
  FASTLSTM_INLINE auto total(int64_t n, const auto& f) const {
    decltype(f(n)) sum(0);
#pragma omp simd reduction(+ : sum)
    for (int64_t k = 0; k < n; ++k) sum += f(k);
    return sum;
  }
};

template <typename S>
static void run_row(const S& step, int64_t row, int64_t begin, int64_t end) {
  const S s = step;
  const OneThread group{begin, S::kWholeRows ? 4 * s.hidden_size : end};
  // With a constant `reset` the loops of step_row have no branch and vectorize.
  if (is_reset(s, row))
    step_row(s, row, true, group);
  else
    step_row(s, row, false, group);
}

template <typename T, typename A>
static constexpr RowKernels<T, A> row_kernels() {
  if constexpr (sizeof(T) == 2 && !Target::has_16_bit_row_kernels)
    return {};
  else
    return {run_row<ForwardStep<T, A>>,           run_row<BackwardStep<T, A>>,
            run_row<ProjectionForwardStep<T, A>>, run_row<ProjectionBackwardStep<T, A>>,
            run_row<NormForwardStep<T, A>>,       run_row<NormBackwardStep<T, A>>};
}

constexpr int kRows = Target::tile_rows, kVectors = Target::tile_vectors;
constexpr GemmKernels float32_gemm = make_training_gemm<kRows, kVectors, float>();
constexpr GemmKernels float64_gemm = make_training_gemm<kRows, kVectors, double>();
constexpr GemmKernels bfloat16_gemm = with_rounding(make_gemm<kRows, kVectors, bfloat16>());
constexpr GemmKernels float16_gemm = make_gemm<kRows, kVectors, float16>();
constexpr GemmKernels int8_gemm = make_int8_gemm<Target::int8_tile_rows, kVectors, DotProduct>();

const KernelTable table = {
    {row_kernels<float, float>(), &cell_kernels<float>},
    {row_kernels<double, double>(), &cell_kernels<double>},
    {row_kernels<bfloat16, float>(), &cell_kernels<bfloat16>},
    {row_kernels<float16, float>(), &cell_kernels<float16>},
    FASTLSTM_STRING(FASTLSTM_ISA),
    {{&float32_gemm, &float64_gemm, &bfloat16_gemm, &int8_gemm, nullptr, &float16_gemm}}};

}  // namespace fastlstm::FASTLSTM_ISA
