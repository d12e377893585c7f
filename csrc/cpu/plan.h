// The CPU planner: decides by which engine a call runs, in which dtype, in which chunks of steps,
// and how threads divide the work.
//
// A plan is a pure function of the call (CpuTask) and the machine (CpuMachine), which need not be
// the machine that runs this code. The engines follow the plan and decide nothing themselves. With
// another plan a call takes another time, and its results differ only by rounding errors.
#pragma once
#include <optional>

#include "cpu/products/gemm_kernels.h"

namespace fastlstm {

// What the planner knows of a processor.
struct CpuMachine {
  int64_t threads = 1;
  int64_t l2_cache_bytes = 1 << 20;  // of one core
  GemmTable gemms;
  bool has_16_bit_row_kernels = true;  // whether the stepwise engine has kernels for 16-bit types
  // With fewer rows in a step on average, the input of several steps is multiplied ahead, unless it
  // is narrow. Otherwise each step may multiply its own input (CpuPlan::steps_ahead is 0).
  int64_t min_rows_to_fuse_input = INT64_MAX;
  int64_t l3_cache_bytes = 32 << 20;  // which the cores share

  // Returns the kernels that multiply a dtype in training, or nullptr.
  const GemmKernels* training_gemm(Dtype dtype) const;
};

// How float32 is multiplied. kTf32: as three products of bfloat16. kBf16: rounded to bfloat16.
enum class Precision { kFloat32, kTf32, kBf16 };

// What the planner knows of a call of one layer.
struct CpuTask {
  Dtype dtype;  // of the input
  int64_t directions = 1, steps = 1, batch = 1;
  int64_t total_rows = 1;  // the sum over all steps of the rows that have not ended
  int64_t mean_rows() const { return total_rows / steps; }  // of a step
  int64_t input_size = 1, hidden_size = 1, output_size = 1;
  int64_t weights() const { return 4 * hidden_size * (input_size + output_size); }  // W_ih and W_hh
  bool projects = false;
  bool needs_stepwise = false;  // layer normalization, recurrent dropout, or engine "stepwise"
  bool is_dense = true;         // all rows have all steps: neither packed input nor lengths
  bool has_resets = false;
  Precision precision = Precision::kFloat32;  // torch.backends.mkldnn.rnn.fp32_precision
  bool saves_for_backward = false;            // whether a forward pass saves what backward needs
  bool backward = false;                      // whether this is the backward pass
  std::optional<Format> prepacked = {};       // the format of prepacked weights
};

// How threads divide a step. The workers of a direction divide its units into unit_groups and its
// rows into row_groups. `directions` run at the same time. A unit needs h of all units of the step
// before, so with more than one unit group all threads meet at a barrier after every step.
struct ThreadGrid {
  int64_t unit_groups = 1, row_groups = 1, directions = 1;
  int64_t workers() const { return unit_groups * row_groups; }
  int64_t threads() const { return workers() * directions; }
};

// One of the workers of a direction, and its groups (SortedRows::for_rows_of_group).
struct Worker {
  int64_t index, unit_group, row_group;
};

// Where GEMM kernels read a matrix. kPanels: in panels that were packed for this call or before it.
// kPanelOnDemand: each thread packs a panel just before it multiplies with the panel. kInPlace: in
// the weight itself. The last two are for calls that read the weights only a few times.
enum class MatrixForm { kPanels, kPanelOnDemand, kInPlace };

// What the planner decides.
struct CpuPlan {
  Dtype dtype;                        // in which the layer is computed
  const GemmKernels* gemm = nullptr;  // of the tiled engine; nullptr: the stepwise engine runs
  MatrixForm w_ih = MatrixForm::kPanels, w_hh = MatrixForm::kPanels;  // w_hh: W_hh and W_hr
  ThreadGrid grid;
  // Forward: the number of steps whose inputs one product multiplies, before the walk over them. If
  // it is 0, each step multiplies its own input.
  int64_t steps_ahead = 0;
  int64_t chunk_steps = 1;  // backward: the number of steps whose d_gates one product multiplies
  // Forward: the rows and vectors of units whose sums the cell equations read at a time.
  int64_t buffer_rows = 1, buffer_unit_vectors = 1;
};

CpuPlan make_plan(const CpuTask& task, const CpuMachine& machine);

}  // namespace fastlstm
