// The table of all CPU kernels, one per instruction set (kernels_*.cpp), chosen at run time.
#pragma once
#include "../layer_norm_step.h"
#include "half.h"
#include "tiled_params.h"

namespace fastlstm {

// Units [begin, end) of one row of the stepwise engine.
template <typename T, typename A>
struct RowKernels {
  void (*forward)(const StepForward<T, A>&, int64_t row, int64_t begin, int64_t end);
  void (*backward)(const StepBackward<T, A>&, int64_t row, int64_t begin, int64_t end);
  // Whole rows, with layer normalisation.
  void (*forward_normed)(const NormForward<T, A>&, int64_t row);
  void (*backward_normed)(const NormBackward<T, A>&, int64_t row);
};

struct KernelTable {
  const char* name;
  RowKernels<float, float> row_f32;
  RowKernels<double, double> row_f64;
  RowKernels<bfloat16, float> row_bf16;
  RowKernels<float16, float> row_f16;
  TiledKernels<float, float> tiled_f32;
  TiledKernels<double, double> tiled_f64;
};

// For AVX-512, AVX2 or the compiler's baseline: what this machine has, or less if the environment
// variable ATEN_CPU_CAPABILITY says so (the one that PyTorch's own kernels obey).
const KernelTable& kernels();

// The tiled kernels for bfloat16, or nullptr without AVX512_BF16.
const TiledKernels<bfloat16, float>* bfloat16_kernels();

}  // namespace fastlstm
