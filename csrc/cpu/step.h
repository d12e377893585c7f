// One step of the stepwise engine on the CPU: all rows, in parallel.
#pragma once
#include <ATen/Parallel.h>

#include <algorithm>

#include "cpu/targets/kernels.h"
#include "equations/layer_norm_step.h"
#include "parts.h"

namespace fastlstm {

class CpuSteps {
 public:
  template <typename T, typename A>
  static void run(const StepForward<T, A>& step) {
    for_all_pieces(step, kernels<T>().row.forward);
  }
  template <typename T, typename A>
  static void run(const StepBackward<T, A>& step) {
    for_all_pieces(step, kernels<T>().row.backward);
  }
  template <typename T, typename A>
  static void run(const NormForward<T, A>& step) {
    for_all_rows(step, kernels<T>().row.forward_normed);
  }
  template <typename T, typename A>
  static void run(const NormBackward<T, A>& step) {
    for_all_rows(step, kernels<T>().row.backward_normed);
  }

 private:
  // Rows are cut into pieces, so that one long row keeps several threads busy too.
  static constexpr int64_t kUnitsPerPiece = 256, kPiecesPerThread = 8;

  static void for_all_pieces(const auto& step, auto kernel) {
    const int64_t pieces = divide_up(step.hidden_size, kUnitsPerPiece);
    at::parallel_for(0, step.rows * pieces, kPiecesPerThread, [&](int64_t first, int64_t last) {
      for (int64_t k = first; k < last; ++k) {
        const int64_t begin = k % pieces * kUnitsPerPiece;
        kernel(step, k / pieces, begin, std::min(begin + kUnitsPerPiece, step.hidden_size));
      }
    });
  }
  static void for_all_rows(const auto& step, auto kernel) {
    const int64_t grain = 1 + kUnitsPerPiece * kPiecesPerThread / (step.hidden_size + 1);
    at::parallel_for(0, step.rows, grain, [&](int64_t first, int64_t last) {
      for (int64_t row = first; row < last; ++row) kernel(step, row);
    });
  }
};

}  // namespace fastlstm
