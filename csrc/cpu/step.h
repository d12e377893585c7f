// One step of the stepwise engine on the CPU: all rows, in parallel.
#pragma once
#include <ATen/Parallel.h>

#include <algorithm>

#include "cpu/targets/kernels.h"
#include "parts.h"

namespace fastlstm {

struct CpuSteps {
  // Rows are cut into pieces where that may be, so that one long row keeps several threads busy
  // too.
  template <template <typename, typename> class S, typename T, typename A>
  static void run(const S<T, A>& step) {
    constexpr int64_t kUnitsPerPiece = 256, kUnitsPerThread = 2048;
    const RowKernel<S<T, A>>& kernel = kernels<T>().row;
    const int64_t size = step.kWholeRows ? std::max<int64_t>(step.hidden_size, 1) : kUnitsPerPiece;
    const int64_t pieces = divide_up(step.hidden_size, size);
    const int64_t grain = 1 + kUnitsPerThread / (size + 1);
    at::parallel_for(0, step.rows * pieces, grain, [&](int64_t first, int64_t last) {
      for (int64_t k = first; k < last; ++k) {
        const int64_t begin = k % pieces * size;
        kernel.run(step, k / pieces, begin, begin + size);
      }
    });
  }
};

}  // namespace fastlstm
