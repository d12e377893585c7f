// Threads over the steps of a walk.
#pragma once
#include <ATen/Parallel.h>
#ifdef _OPENMP
#include <omp.h>
#endif

#include <atomic>
#include <exception>

#include "cpu/plan.h"
#include "cpu/rows.h"
#include "cpu/targets/kernels.h"

namespace fastlstm {

// An exception may not leave an OpenMP region, which would end the process: the first one is kept,
// and no work is started after it.
class FirstException {
 public:
  void guard(const auto& work) {
    if (thrown_) return;
    try {
      work();
    } catch (...) {
      if (!thrown_.exchange(true)) first_ = std::current_exception();
    }
  }
  void rethrow() const {
    if (first_) std::rethrow_exception(first_);
  }

 private:
  std::atomic<bool> thrown_ = false;
  std::exception_ptr first_;
};

// work(i, v) for i in `range` and every thread v < `threads`, and if they `meet` a barrier after
// each i. Correct for any number of threads that there really are.
void run_workers(const GemmKernels& gemm, int64_t threads, bool meet, const Range& range,
                 const auto& work) {
#ifdef _OPENMP
  if (threads > 1 && !at::in_parallel_region()) {
    FirstException thrown;
#pragma omp parallel num_threads(static_cast<int>(threads))
    {
      const ThreadSeries series(gemm);
      const int64_t id = omp_get_thread_num(), team = omp_get_num_threads();
      const auto do_all = [&](int64_t i) {
        for (int64_t v = id; v < threads; v += team) thrown.guard([&] { work(i, v); });
      };
      for (int64_t i = range.begin; i < range.end; ++i) {
        do_all(i);
        if (!meet) continue;
#pragma omp barrier
      }
    }
    thrown.rethrow();
    return;
  }
#endif
  const ThreadSeries series(gemm);
  for (int64_t i = range.begin; i < range.end; ++i)
    for (int64_t v = 0; v < threads; ++v) work(i, v);
}

// work(d, k, phase, worker) for `directions` directions, every step k of a walk, each phase of a
// step and every worker of the grid.
void run_steps(const GemmKernels& gemm, const ThreadGrid& grid, int64_t directions,
               const Range& steps, int64_t phases, const auto& work) {
  const Range range{steps.begin * phases, steps.end * phases};
  for (int64_t d = 0; d < directions; d += grid.directions)
    run_workers(gemm, grid.threads(), grid.unit_groups > 1, range, [&](int64_t i, int64_t v) {
      const int64_t k = v % grid.workers();
      work(d + v / grid.workers(), i / phases, i % phases,
           Worker{k, k % grid.unit_groups, k / grid.unit_groups});
    });
}

}  // namespace fastlstm
