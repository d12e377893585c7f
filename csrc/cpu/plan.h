// Which engine runs on the CPU, and how a walk is divided among threads. No ATen here.
#pragma once
#include <cstdint>
#include <string_view>

namespace fastlstm {

enum class CpuEngine { kStepwise, kTiled };

// engine: "auto", which is the tiled one except for layer normalisation, or a name. Returns false
// if there is no such engine or it does not serve the call.
bool choose_cpu_engine(std::string_view engine, bool normalizes, CpuEngine& chosen);

// members = unit_groups * row_groups divide a direction, and so many directions are walked at the
// same time. Rows are independent: row groups walk alone, unit groups meet at a barrier after every
// step.
struct ThreadGrid {
  int64_t unit_groups, row_groups, directions = 1;
  int64_t members() const { return unit_groups * row_groups; }
  int64_t threads() const { return members() * directions; }
};

// One of the threads of a grid: its share of the units, and of the rows: row_group,
// row_group + row_groups, ... With rows sorted by length, every group gets its share.
struct Member {
  int64_t index, unit_group, row_group;
};

inline Member member_of(const ThreadGrid& grid, int64_t index) {
  return {index, index % grid.unit_groups, index / grid.unit_groups};
}

// Of a core, as the system has it; 1 MB where it does not say.
int64_t l2_cache_bytes();

// What is multiplied in a step, and how: a product of fewer than `panel_rows` rows is bound by
// loading the weights from the L2 cache.
struct StepProduct {
  int64_t directions, batch, hidden_size, lanes, element_size, panel_rows;
};

// The fastest division of a step by a model of its time: directions at the same time where there
// are two, row groups where the weights of all units fit into the L2 cache of a core, and there are
// rows enough.
ThreadGrid plan_threads(int64_t threads, const StepProduct& step);

}  // namespace fastlstm
