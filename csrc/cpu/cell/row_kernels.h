// Loops over the units of a row: included by one source file per instruction set, each of which
// sets the target before any include and FASTLSTM_ISA to a namespace of its own.
//
// Only plain loops and always-inline functions here: an inline function of the standard library,
// compiled for AVX-512 in one file, could be the copy that the linker keeps for all of them.
#pragma once
#include "cpu/half.h"
#include "equations/layer_norm_step.h"

namespace fastlstm {
namespace FASTLSTM_ISA {

template <typename T, typename A>
static void forward(const StepForward<T, A>& step, int64_t row, int64_t begin, int64_t end) {
  const StepForward<T, A> s = step;
  if (!is_live(s, row)) {
    for (int64_t u = begin; u < end; ++u) forward_dead_unit(s, row, u);
  } else if (s.zoneout.h) {
    const bool reset = is_reset(s, row);
#pragma omp simd
    for (int64_t u = begin; u < end; ++u) forward_unit(s, row, u, reset, true);
  } else if (is_reset(s, row)) {
#pragma omp simd
    for (int64_t u = begin; u < end; ++u) forward_unit(s, row, u, true, false);
  } else {
#pragma omp simd
    for (int64_t u = begin; u < end; ++u) forward_unit(s, row, u, false, false);
  }
}

template <typename T, typename A>
static void backward(const StepBackward<T, A>& step, int64_t row, int64_t begin, int64_t end) {
  const StepBackward<T, A> s = step;
  const bool reset = is_reset(s, row), starts = starts_here(s, row);
  if (!is_live(s, row)) {
    for (int64_t u = begin; u < end; ++u) backward_dead_unit(s, row, u);
  } else if (s.zoneout.h) {
#pragma omp simd
    for (int64_t u = begin; u < end; ++u) backward_unit(s, row, u, reset, starts, true);
  } else if (reset) {
#pragma omp simd
    for (int64_t u = begin; u < end; ++u) backward_unit(s, row, u, true, false, false);
  } else if (starts) {
#pragma omp simd
    for (int64_t u = begin; u < end; ++u) backward_unit(s, row, u, false, true, false);
  } else {
#pragma omp simd
    for (int64_t u = begin; u < end; ++u) backward_unit(s, row, u, false, false, false);
  }
}

// One thread has the whole row.
struct OneThread {
  template <typename F>
  FASTLSTM_INLINE void each(int64_t n, const F& f) const {
#pragma omp simd
    for (int64_t k = 0; k < n; ++k) f(k);
  }
  template <typename F>
  FASTLSTM_INLINE auto total(int64_t n, const F& f) const {
    decltype(f(n)) sum(0);
#pragma omp simd reduction(+ : sum)
    for (int64_t k = 0; k < n; ++k) sum += f(k);
    return sum;
  }
};

template <typename T, typename A>
static void forward_normed(const NormForward<T, A>& step, int64_t row) {
  forward_normed_row(step, row, OneThread());
}

template <typename T, typename A>
static void backward_normed(const NormBackward<T, A>& step, int64_t row) {
  backward_normed_row(step, row, OneThread());
}

}  // namespace FASTLSTM_ISA
}  // namespace fastlstm
