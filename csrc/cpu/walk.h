// Threads over the steps of a walk.
#pragma once
#include <ATen/Parallel.h>
#ifdef _OPENMP
#include <omp.h>
#endif

#include <algorithm>

#include "plan.h"
#include "rows.h"

namespace fastlstm {

// Room for `count` rows for each member of the grid, made before the walk: within OpenMP's threads
// an allocation that fails would end the process.
template <typename Row>
class PerMember {
 public:
  PerMember(const ThreadGrid& grid, int64_t count)
      : grid_(grid), rows_(grid.threads(), std::vector<Row>(count)) {}
  std::vector<Row>& of(int64_t unit_group, int64_t row_group) {
    return rows_[grid_.member(unit_group, row_group)];
  }

 private:
  ThreadGrid grid_;
  std::vector<std::vector<Row>> rows_;
};

// Walks steps [begin, end): work(k, unit group, row group) for every member of the grid, a barrier
// after each step if units are divided. Correct whatever number of threads there really is.
template <typename Work>
void walk_with_threads(const ThreadGrid& grid, int64_t begin, int64_t end, const Work& work) {
  const auto member = [&](int64_t k, int64_t v) {  // v as in ThreadGrid::member
    work(k, v % grid.unit_groups, v / grid.unit_groups);
  };
#ifdef _OPENMP
  if (grid.threads() > 1 && !at::in_parallel_region()) {
#pragma omp parallel num_threads(static_cast<int>(grid.threads()))
    {
      const int64_t id = omp_get_thread_num(), team = omp_get_num_threads();
      if (grid.unit_groups == 1) {
        for (int64_t v = id; v < grid.threads(); v += team)
          for (int64_t k = begin; k < end; ++k) member(k, v);
      } else {
        for (int64_t k = begin; k < end; ++k) {
          for (int64_t v = id; v < grid.threads(); v += team) member(k, v);
#pragma omp barrier
        }
      }
    }
    return;
  }
#endif
  for (int64_t k = begin; k < end; ++k)
    for (int64_t v = 0; v < grid.threads(); ++v) member(k, v);
}

inline ThreadGrid thread_grid(const Rows& rows, int64_t hidden, int64_t lanes,
                              int64_t element_size) {
  // Below this many multiply-adds, waking other threads costs more than they help.
  constexpr int64_t kWorthAThread = 1 << 21;
  const int64_t work = rows.total() * 4 * hidden * hidden;
  const int64_t threads = std::min<int64_t>(at::get_num_threads(), 1 + work / kWorthAThread);
  return plan_threads(at::in_parallel_region() ? 1 : threads, rows.batch(), hidden, lanes,
                      element_size);
}

}  // namespace fastlstm
