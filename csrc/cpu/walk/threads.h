// Threads over the steps of a walk.
#pragma once
#include <ATen/Parallel.h>
#ifdef _OPENMP
#include <omp.h>
#endif

#include <algorithm>
#include <atomic>
#include <exception>

#include "cpu/plan.h"
#include "cpu/products/thread_series.h"
#include "cpu/walk/rows.h"

namespace fastlstm {

// One of the threads of a grid: its share of the units, and of the rows: row_group,
// row_group + row_groups, ... With rows sorted by length, every group gets its share.
struct Member {
  int64_t index, unit_group, row_group;
};

inline Member member_of(const ThreadGrid& grid, int64_t index) {
  return {index, index % grid.unit_groups, index / grid.unit_groups};
}

// An exception may not leave an OpenMP region, which would end the process: the first one is kept,
// and no work is started after it.
class FirstException {
 public:
  template <typename Work>
  void guard(const Work& work) {
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

// work(k, phase, member) for every step k of a walk, each phase of a step and every member of the
// grid; where units are divided, a barrier after each phase. Correct for any number of threads
// that there really are.
template <typename T, typename Work>
void walk_steps(const ThreadGrid& grid, const Range& steps, int64_t phases, const Work& work) {
  const auto do_phase = [&](int64_t i, int64_t index) {
    work(i / phases, i % phases, member_of(grid, index));
  };
  const int64_t begin = steps.begin * phases, end = steps.end * phases;
#ifdef _OPENMP
  if (grid.threads() > 1 && !at::in_parallel_region()) {
    FirstException thrown;
#pragma omp parallel num_threads(static_cast<int>(grid.threads()))
    {
      const ThreadSeries<T> series;
      const int64_t id = omp_get_thread_num(), team = omp_get_num_threads();
      const auto do_all = [&](int64_t i) {
        for (int64_t v = id; v < grid.threads(); v += team) thrown.guard([&] { do_phase(i, v); });
      };
      for (int64_t i = begin; i < end; ++i) {
        do_all(i);
        if (grid.unit_groups == 1) continue;
#pragma omp barrier
      }
    }
    thrown.rethrow();
    return;
  }
#endif
  const ThreadSeries<T> series;
  for (int64_t i = begin; i < end; ++i)
    for (int64_t v = 0; v < grid.threads(); ++v) do_phase(i, v);
}

// T: of the layer; W: of the product. Where they differ, threads that share the units encode every
// row once each, which costs more than loading fewer weights saves.
template <typename T, typename W>
ThreadGrid thread_grid(const Rows& rows, int64_t hidden_size) {
  // Below this many multiply-adds, waking other threads costs more than they help.
  constexpr int64_t kWorthAThread = 1 << 21;
  const int64_t work = rows.total() * 4 * hidden_size * hidden_size;
  const int64_t threads = std::min<int64_t>(at::get_num_threads(), 1 + work / kWorthAThread);
  const Product<W>& product = product_of<W>();
  const int64_t panel_rows = std::is_same_v<T, W> ? product.panel_rows : kPanelRows;
  return plan_threads(at::in_parallel_region() ? 1 : threads,
                      {rows.batch(), hidden_size, product.lanes, sizeof(W), panel_rows});
}

}  // namespace fastlstm
