#include "cpu/step.h"

#include <ATen/Parallel.h>

#include <algorithm>

#include "cpu/targets/kernels.h"

namespace fastlstm {
namespace {

// Rows are cut into pieces, so that one long row keeps several threads busy too.
constexpr int64_t kUnitsPerPiece = 256, kPiecesPerThread = 8;

void for_all_pieces(const auto& step, auto kernel) {
  const int64_t pieces = (step.hidden_size + kUnitsPerPiece - 1) / kUnitsPerPiece;
  at::parallel_for(0, step.rows * pieces, kPiecesPerThread, [&](int64_t first, int64_t last) {
    for (int64_t k = first; k < last; ++k) {
      const int64_t begin = k % pieces * kUnitsPerPiece;
      kernel(step, k / pieces, begin, std::min(begin + kUnitsPerPiece, step.hidden_size));
    }
  });
}

void for_all_rows(const auto& step, auto kernel) {
  const int64_t grain = 1 + kUnitsPerPiece * kPiecesPerThread / (step.hidden_size + 1);
  at::parallel_for(0, step.rows, grain, [&](int64_t first, int64_t last) {
    for (int64_t row = first; row < last; ++row) kernel(step, row);
  });
}

template <typename T, typename A>
void run_step(const StepForward<T, A>& step) {
  for_all_pieces(step, kernels<T>().row.forward);
}
template <typename T, typename A>
void run_step(const StepBackward<T, A>& step) {
  for_all_pieces(step, kernels<T>().row.backward);
}
template <typename T, typename A>
void run_step(const NormForward<T, A>& step) {
  for_all_rows(step, kernels<T>().row.forward_normed);
}
template <typename T, typename A>
void run_step(const NormBackward<T, A>& step) {
  for_all_rows(step, kernels<T>().row.backward_normed);
}

}  // namespace

void CpuSteps::run(const auto& step) { run_step(step); }

#define FASTLSTM_INSTANTIATE(T, A, name)                  \
  template void CpuSteps::run(const StepForward<T, A>&);  \
  template void CpuSteps::run(const StepBackward<T, A>&); \
  template void CpuSteps::run(const NormForward<T, A>&);  \
  template void CpuSteps::run(const NormBackward<T, A>&);
FASTLSTM_FOR_EACH_DTYPE(FASTLSTM_INSTANTIATE)

}  // namespace fastlstm
