// The cell kernels of one step on the CPU, compiled once per instruction set and chosen at run time.
#pragma once
#include "../lstm_params.h"
#include "half.h"

namespace fastlstm {

// Units [begin, end) of one row.
template <typename T, typename A>
struct RowKernels {
  void (*forward)(const StepForward<T, A>&, int64_t row, int64_t begin, int64_t end);
  void (*backward)(const StepBackward<T, A>&, int64_t row, int64_t begin, int64_t end);
};

struct RowKernelTable {
  RowKernels<float, float> f32;
  RowKernels<double, double> f64;
  RowKernels<bfloat16, float> bf16;
  RowKernels<float16, float> f16;
};

// "avx512", "avx2" or "default": what this machine has, or less if the environment variable
// ATEN_CPU_CAPABILITY says so (the same one that PyTorch's own kernels obey).
const char* cpu_capability();

// All rows of a step, in parallel.
template <typename T, typename A>
void step_forward(const StepForward<T, A>& step);
template <typename T, typename A>
void step_backward(const StepBackward<T, A>& step);

}  // namespace fastlstm
