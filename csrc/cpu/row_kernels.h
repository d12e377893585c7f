// Loops over the units of a row: included by one source file per instruction set, each of which
// sets the target before any include and FASTLSTM_ISA to a namespace of its own.
//
// Only plain loops and always-inline functions here: an inline function of the standard library,
// compiled for AVX-512 in one file, could be the copy that the linker keeps for all of them.
#pragma once
#include "../lstm_step.h"
#include "half.h"

namespace fastlstm {
namespace FASTLSTM_ISA {

template <typename T, typename A>
static void forward(const StepForward<T, A>& step, int64_t row, int64_t begin, int64_t end) {
  const StepForward<T, A> s = step;
  if (!is_live(s, row)) {
    for (int64_t u = begin; u < end; ++u) forward_dead_unit(s, row, u);
  } else if (is_reset(s, row)) {
#pragma omp simd
    for (int64_t u = begin; u < end; ++u) forward_unit(s, row, u, true);
  } else {
#pragma omp simd
    for (int64_t u = begin; u < end; ++u) forward_unit(s, row, u, false);
  }
}

template <typename T, typename A>
static void backward(const StepBackward<T, A>& step, int64_t row, int64_t begin, int64_t end) {
  const StepBackward<T, A> s = step;
  const bool reset = is_reset(s, row), starts = starts_here(s, row);
  if (!is_live(s, row)) {
    for (int64_t u = begin; u < end; ++u) backward_dead_unit(s, row, u);
  } else if (reset) {
#pragma omp simd
    for (int64_t u = begin; u < end; ++u) backward_unit(s, row, u, true, false);
  } else if (starts) {
#pragma omp simd
    for (int64_t u = begin; u < end; ++u) backward_unit(s, row, u, false, true);
  } else {
#pragma omp simd
    for (int64_t u = begin; u < end; ++u) backward_unit(s, row, u, false, false);
  }
}

}  // namespace FASTLSTM_ISA
}  // namespace fastlstm
