// How a call runs on the CPU: by which engine, in which dtypes, in which chunks of steps, divided
// among how many threads. A pure function of the call and the machine, which need not be this one;
// walks read its plan and decide nothing. The plan changes the time and the last bits of a result,
// never its meaning. No ATen here.
#pragma once
#include <cstdint>
#include <optional>

#include "cpu/products/gemm_kernels.h"

namespace fastlstm {

struct CpuMachine {
  int64_t threads = 1;
  int64_t l2_cache_bytes = 1 << 20;  // of a core
  GemmTable gemms;
  bool has_16_bit_row_kernels = true;  // whether the stepwise engine has cells for them
  // From so many rows of a mean step on, their input is multiplied beside h, not steps ahead, if
  // each group of rows has a whole tile of them. Never on processors that nobody measured.
  int64_t min_rows_to_fuse_input = INT64_MAX;

  // The product that layers of a dtype are trained with, if there is one.
  const GemmKernels* training_gemm(Dtype dtype) const;
};

// How float32 is multiplied: as it is, as three products of bfloat16, or rounded to bfloat16.
enum class Precision { kFloat32, kTf32, kBf16 };

struct CpuTask {
  Dtype dtype;
  int64_t directions = 1, steps = 1, batch = 1, total_rows = 1;  // rows: of all steps together
  int64_t input_size = 1, hidden_size = 1, output_size = 1;
  bool projects = false;
  bool needs_stepwise = false;  // layer normalization, recurrent dropout, or by name
  bool is_dense = true;         // neither packed nor ragged, no mask
  bool has_resets = false;
  // torch.backends.mkldnn.rnn.fp32_precision.
  Precision precision = Precision::kFloat32;
  bool saves_for_backward = false;  // a forward that backward follows
  bool backward = false;
  std::optional<Format> prepacked = {};  // weights that were packed before the call
};

// workers = unit_groups * row_groups divide a direction, and so many directions are walked at the
// same time. Rows are independent: row groups walk alone, unit groups meet at a barrier after every
// step.
struct ThreadGrid {
  int64_t unit_groups = 1, row_groups = 1, directions = 1;
  int64_t workers() const { return unit_groups * row_groups; }
  int64_t threads() const { return workers() * directions; }
};

// One of the threads of a grid: its share of the units, and of the rows: row_group,
// row_group + row_groups, ... With rows sorted by length, every group gets its share.
struct Worker {
  int64_t index, unit_group, row_group;
};

// Where a product finds a matrix: in panels, packed for the call or before it; in a panel that is
// packed when it is multiplied; or as it lies. A walk of few steps reads each weight a few times,
// and panels of all would cross memory twice more.
enum class MatrixForm { kPanels, kPanelOnDemand, kInPlace };

struct CpuPlan {
  Dtype dtype;                        // what the layer is computed in
  const GemmKernels* gemm = nullptr;  // of the tiled engine; none: the stepwise one computes
  MatrixForm w_ih = MatrixForm::kPanels;
  MatrixForm w_hh = MatrixForm::kPanels;  // and W_hr
  ThreadGrid grid;
  int64_t steps_ahead = 0;  // forward: steps whose input is multiplied at once; 0: beside h
  int64_t chunk_steps = 1;  // backward: steps that are walked, then multiplied
  // Forward: rows, and vectors of units, whose sums wait in the cache for the cell equations.
  int64_t buffer_rows = 1, buffer_unit_vectors = 1;
};

CpuPlan make_plan(const CpuTask& task, const CpuMachine& machine);

}  // namespace fastlstm
