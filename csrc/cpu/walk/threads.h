// Runs the steps of a walk in threads.
#pragma once
#include <ATen/Parallel.h>
#ifdef _OPENMP
#include <omp.h>
#endif

#include <array>
#include <atomic>
#include <exception>
#include <thread>

#include "cpu/plan.h"
#include "cpu/targets/kernels.h"
#include "parts.h"

namespace fastlstm {

// Lets threads wait for each other. OpenMP's barrier makes a system call, 0.3 us at every step.
class StepBarrier {
 public:
  // Returns when all threads have called it as often as the calling thread.
  void wait(int64_t threads) {
    const int64_t step = step_;
    if (++arrived_ == threads) arrived_ = 0, ++step_;
    for (int spins = 0; step_ == step; ++spins) {
      if (spins >= 1000) std::this_thread::yield();  // after 30 us another program may run
#ifdef __x86_64__
      __builtin_ia32_pause();
#endif
    }
  }

 private:
  alignas(64) std::atomic<int64_t> arrived_ = 0, step_ = 0;  // each in a cache line of its own
};

// Calls work(i, worker) for every i of `range` in order and for all workers of a plan, each in a
// thread. If OpenMP starts fewer threads, a thread runs several workers, always the same ones. If
// workers divide the units of a step, no worker begins i + 1 before all have ended i.
void run_workers(const CpuPlan& plan, const Range& range, const auto& work) {
  const int64_t workers = plan.grid.threads();
#ifdef _OPENMP
  if (workers > 1 && !at::in_parallel_region()) {
    // An exception that left the OpenMP region by itself would end the process.
    std::atomic<bool> has_failed = false;
    std::exception_ptr error;
    StepBarrier barrier;
#pragma omp parallel num_threads(static_cast<int>(workers))
    {
      const ThreadStateGuard guard(*plan.gemm);
      const int64_t thread = omp_get_thread_num(), threads = omp_get_num_threads();
      for (int64_t i = range.begin; i < range.end; ++i) {
        for (int64_t worker = thread; worker < workers && !has_failed; worker += threads) {
          try {
            work(i, worker);
          } catch (...) {
            if (!has_failed.exchange(true)) error = std::current_exception();
          }
        }
        if (plan.grid.unit_groups > 1) barrier.wait(threads);
      }
    }
    if (error) std::rethrow_exception(error);
    return;
  }
#endif
  const ThreadStateGuard guard(*plan.gemm);
  for (int64_t i = range.begin; i < range.end; ++i)
    for (int64_t worker = 0; worker < workers; ++worker) work(i, worker);
}

constexpr int64_t kMaxDirections = 2;

// Calls walks[d]->run(k, phase, worker) for each direction d, step k, phase of a step, and worker.
void run_steps(const CpuPlan& plan, int64_t directions, const Range& chunk, auto& walks) {
  const ThreadGrid& grid = plan.grid;
  const int64_t phases = walks.front()->phases();
  const Range range{chunk.begin * phases, chunk.end * phases};  // i = step * phases + phase
  for (int64_t d = 0; d < directions; d += grid.directions)
    run_workers(plan, range, [&](int64_t i, int64_t worker) {
      const int64_t index = worker % grid.workers();
      walks[d + worker / grid.workers()]->run(
          i / phases, i % phases,
          Worker{index, index % grid.unit_groups, index / grid.unit_groups});
    });
}

}  // namespace fastlstm
