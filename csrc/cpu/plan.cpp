#include "plan.h"

#include <algorithm>
#if defined(__linux__)
#include <unistd.h>
#endif

namespace fastlstm {

int64_t l2_cache_bytes() {
#if defined(__linux__) && defined(_SC_LEVEL2_CACHE_SIZE)
  static const int64_t known = sysconf(_SC_LEVEL2_CACHE_SIZE);
#else
  constexpr int64_t known = 0;
#endif
  return known > 0 ? known : 1 << 20;
}

bool choose_cpu_engine(std::string_view engine, bool normalizes, CpuEngine& chosen) {
  chosen = normalizes || engine == "stepwise" ? CpuEngine::kStepwise : CpuEngine::kTiled;
  return engine == "stepwise" || engine == "auto" || (engine == "tiled" && !normalizes);
}

ThreadGrid plan_threads(int64_t threads, const StepProduct& step) {
  // Microseconds per step of each division, from a multiply-add rate, the bandwidth beyond the L2
  // cache (loads run ahead of the arithmetic of our tiles, so the longer of the two counts) and the
  // cost of a barrier on an idle machine, for each thread that meets there. Only the time depends
  // on the choice, never the result.
  constexpr double kMultiplyAddsPerMicrosecond = 1.2e5, kBytesPerMicrosecond = 4e4;
  constexpr double kBarrierMicroseconds = 0.25;
  const double cache_bytes = 0.75 * l2_cache_bytes();  // the rest is for rows and sums
  const int64_t tiles = (step.hidden_size + step.lanes - 1) / step.lanes;
  ThreadGrid best{1, 1};
  double best_time = 1e300;
  const auto consider = [&](int64_t directions, int64_t used) {
    for (int64_t row_groups = 1; row_groups <= used; ++row_groups) {
      if (used % row_groups != 0) continue;
      const int64_t unit_groups = used / row_groups;
      if (row_groups > step.batch || unit_groups > tiles) continue;
      const int64_t rows = (step.batch + row_groups - 1) / row_groups;
      const double units = step.lanes * double((tiles + unit_groups - 1) / unit_groups);
      const double weights = 4 * units * step.hidden_size;
      const double arithmetic = weights * std::max(rows, step.panel_rows) * step.element_size / 4 /
                                kMultiplyAddsPerMicrosecond;
      const double bytes = weights * step.element_size;
      const double loading = bytes > cache_bytes ? bytes / kBytesPerMicrosecond : 0;
      const double walks = double(step.directions) / directions;
      const double barrier = unit_groups > 1 ? unit_groups * kBarrierMicroseconds : 0;
      const double time = walks * (std::max(arithmetic, loading) + barrier);
      if (time < best_time) best_time = time, best = {unit_groups, row_groups, directions};
    }
  };
  for (int64_t used = 1; used <= threads / step.directions; ++used) consider(step.directions, used);
  if (step.directions > 1)
    for (int64_t used = 1; used <= threads; ++used) consider(1, used);
  return best;
}

}  // namespace fastlstm
