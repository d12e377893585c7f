// Runs the steps of a walk in threads. If workers divide the units of a step, all threads wait for
// each other after every step. If they divide only rows and directions, no thread waits.
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

// Carries an exception out of an OpenMP region. An exception that left the region by itself would
// end the process. After the first exception no more work is started.
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

// Calls work(i, worker) for every i of `range` in order and for every worker in [0, workers), each
// in a thread. If OpenMP starts fewer threads, a thread runs several workers, always the same ones.
// With `has_barrier` no worker begins i + 1 before all have ended i.
void run_workers(const GemmKernels& gemm, int64_t workers, bool has_barrier, const Range& range,
                 const auto& work) {
#ifdef _OPENMP
  if (workers > 1 && !at::in_parallel_region()) {
    FirstException thrown;
#pragma omp parallel num_threads(static_cast<int>(workers))
    {
      const ThreadSeries series(gemm);
      const int64_t thread = omp_get_thread_num(), threads = omp_get_num_threads();
      for (int64_t i = range.begin; i < range.end; ++i) {
        for (int64_t worker = thread; worker < workers; worker += threads)
          thrown.guard([&] { work(i, worker); });
        if (!has_barrier) continue;
#pragma omp barrier
      }
    }
    thrown.rethrow();
    return;
  }
#endif
  const ThreadSeries series(gemm);
  for (int64_t i = range.begin; i < range.end; ++i)
    for (int64_t worker = 0; worker < workers; ++worker) work(i, worker);
}

// Calls walks[d]->run(k, phase, worker) for every direction d, every step k of a chunk, each phase
// of a step and every worker of the plan.
void run_steps(const CpuPlan& plan, int64_t directions, const Range& chunk, auto& walks) {
  const ThreadGrid& grid = plan.grid;
  const int64_t phases = walks[0]->phases();
  const Range range{chunk.begin * phases, chunk.end * phases};  // i = step * phases + phase
  for (int64_t d = 0; d < directions; d += grid.directions)
    run_workers(*plan.gemm, grid.threads(), grid.unit_groups > 1, range,
                [&](int64_t i, int64_t worker) {
                  const int64_t index = worker % grid.workers();
                  walks[d + worker / grid.workers()]->run(
                      i / phases, i % phases,
                      Worker{index, index % grid.unit_groups, index / grid.unit_groups});
                });
}

}  // namespace fastlstm
