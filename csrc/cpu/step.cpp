#include "step.h"

#include <ATen/Parallel.h>

#include <algorithm>

#include "kernels.h"

namespace fastlstm {
namespace {

const RowKernels<float, float>& row_kernels(float) { return kernels().row_f32; }
const RowKernels<double, double>& row_kernels(double) { return kernels().row_f64; }
const RowKernels<bfloat16, float>& row_kernels(bfloat16) { return kernels().row_bf16; }
const RowKernels<float16, float>& row_kernels(float16) { return kernels().row_f16; }

// Rows are cut into pieces, so that one long row keeps several threads busy too.
constexpr int64_t kUnitsPerPiece = 256, kPiecesPerThread = 8;

template <typename StepType, typename Kernel>
void for_all_pieces(const StepType& step, Kernel kernel) {
  const int64_t pieces = (step.hidden_size + kUnitsPerPiece - 1) / kUnitsPerPiece;
  at::parallel_for(0, step.rows * pieces, kPiecesPerThread, [&](int64_t first, int64_t last) {
    for (int64_t k = first; k < last; ++k) {
      const int64_t begin = k % pieces * kUnitsPerPiece;
      kernel(step, k / pieces, begin, std::min(begin + kUnitsPerPiece, step.hidden_size));
    }
  });
}

}  // namespace

template <typename T, typename A>
void step_forward(const StepForward<T, A>& step) {
  for_all_pieces(step, row_kernels(T()).forward);
}

template <typename T, typename A>
void step_backward(const StepBackward<T, A>& step) {
  for_all_pieces(step, row_kernels(T()).backward);
}

namespace {

template <typename StepType, typename Kernel>
void for_all_rows(const StepType& step, Kernel kernel) {
  const int64_t grain = 1 + kUnitsPerPiece * kPiecesPerThread / (step.hidden_size + 1);
  at::parallel_for(0, step.rows, grain, [&](int64_t first, int64_t last) {
    for (int64_t row = first; row < last; ++row) kernel(step, row);
  });
}

}  // namespace

template <typename T, typename A>
void step_forward_normed(const NormForward<T, A>& step) {
  for_all_rows(step, row_kernels(T()).forward_normed);
}

template <typename T, typename A>
void step_backward_normed(const NormBackward<T, A>& step) {
  for_all_rows(step, row_kernels(T()).backward_normed);
}

#define FASTLSTM_INSTANTIATE(T, A)                             \
  template void step_forward(const StepForward<T, A>&);        \
  template void step_backward(const StepBackward<T, A>&);      \
  template void step_forward_normed(const NormForward<T, A>&); \
  template void step_backward_normed(const NormBackward<T, A>&);
FASTLSTM_INSTANTIATE(float, float)
FASTLSTM_INSTANTIATE(double, double)
FASTLSTM_INSTANTIATE(bfloat16, float)
FASTLSTM_INSTANTIATE(float16, float)

}  // namespace fastlstm
