// Loops over the units of a row: included by one source file per instruction set, each of which
// sets the target before any include and FASTLSTM_ISA to a namespace of its own.
//
// Only plain loops and always-inline functions here: an inline function of the standard library,
// compiled for AVX-512 in one file, could be the copy that the linker keeps for all of them.
#pragma once
#include "equations/layer_norm_step.h"

namespace fastlstm::FASTLSTM_ISA {

// One thread has [begin, end) of what a row has; where sums are needed that is all of it.
struct OneThread {
  int64_t begin, end;

  FASTLSTM_INLINE void each(int64_t n, const auto& f) const {
    const int64_t last = end < n ? end : n;
#pragma omp simd
    for (int64_t k = begin; k < last; ++k) f(k);
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
  const OneThread team{begin, S::kWholeRows ? 4 * s.hidden_size : end};
  if (is_reset(s, row))  // constants: a loop without branches is vectorized
    step_row(s, row, true, team);
  else
    step_row(s, row, false, team);
}

}  // namespace fastlstm::FASTLSTM_ISA
