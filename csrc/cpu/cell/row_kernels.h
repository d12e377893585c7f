// Loops over the units of a row: included by one source file per instruction set, each of which
// sets the target before any include and FASTLSTM_ISA to a namespace of its own.
//
// Only plain loops and always-inline functions here: an inline function of the standard library,
// compiled for AVX-512 in one file, could be the copy that the linker keeps for all of them.
#pragma once
#include "equations/layer_norm_step.h"

namespace fastlstm::FASTLSTM_ISA {

// Calls body(reset, zoned) with constants: a loop without branches is vectorized. Zoneout is rare
// here and has one slow body.
FASTLSTM_INLINE void with_constants(bool reset, bool zoned, const auto& body) {
  if (zoned)
    body(reset, true);
  else if (reset)
    body(true, false);
  else
    body(false, false);
}

template <typename T, typename A>
static void forward(const StepForward<T, A>& step, int64_t row, int64_t begin, int64_t end) {
  const StepForward<T, A> s = step;
  if (!is_live(s, row)) {
    for (int64_t u = begin; u < end; ++u) forward_dead_unit(s, row, u);
    return;
  }
  with_constants(is_reset(s, row), s.zoneout.h, [&](bool reset, bool zoned) FASTLSTM_INLINE_LAMBDA {
#pragma omp simd
    for (int64_t u = begin; u < end; ++u) forward_unit(s, row, u, reset, zoned);
  });
}

template <typename T, typename A>
static void backward(const StepBackward<T, A>& step, int64_t row, int64_t begin, int64_t end) {
  const StepBackward<T, A> s = step;
  if (!is_live(s, row)) {
    for (int64_t u = begin; u < end; ++u) backward_dead_unit(s, row, u);
    return;
  }
  const A* const before = cells_before(s, row);
  with_constants(is_reset(s, row), s.zoneout.h, [&](bool reset, bool zoned) FASTLSTM_INLINE_LAMBDA {
#pragma omp simd
    for (int64_t u = begin; u < end; ++u) backward_unit(s, row, u, before, reset, zoned);
  });
}

// One thread has the whole row.
struct OneThread {
  FASTLSTM_INLINE void each(int64_t n, const auto& f) const {
#pragma omp simd
    for (int64_t k = 0; k < n; ++k) f(k);
  }
  FASTLSTM_INLINE auto total(int64_t n, const auto& f) const {
    decltype(f(n)) sum(0);
#pragma omp simd reduction(+ : sum)
    for (int64_t k = 0; k < n; ++k) sum += f(k);
    return sum;
  }
};

template <typename T, typename A>
static void forward_normed(const NormForward<T, A>& step, int64_t row) {
  const NormForward<T, A> s = step;
  with_constants(is_reset(s, row), s.zoneout.h, [&](bool reset, bool zoned) FASTLSTM_INLINE_LAMBDA {
    forward_normed_row(s, row, reset, zoned, OneThread());
  });
}

template <typename T, typename A>
static void backward_normed(const NormBackward<T, A>& step, int64_t row) {
  const NormBackward<T, A> s = step;
  with_constants(is_reset(s, row), s.zoneout.h, [&](bool reset, bool zoned) FASTLSTM_INLINE_LAMBDA {
    backward_normed_row(s, row, reset, zoned, OneThread());
  });
}

}  // namespace fastlstm::FASTLSTM_ISA
