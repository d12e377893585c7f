#include "plan.h"

#include <algorithm>

#include "parts.h"

namespace fastlstm {
namespace {

// With less to do than this, waking another thread costs more than it helps: multiply-adds of a
// walk and of a single step; bytes of prepacked weights that few rows read.
constexpr int64_t kWalkMultiplyAddsPerThread = 1 << 21;
constexpr int64_t kStepMultiplyAddsPerThread = 1 << 17, kStepBytesPerThread = 128 << 10;

// The most rows for which a panel is packed when it is multiplied.
constexpr int64_t kMaxRowsOnDemand = 512;

// Whether a layer of 16 bits is converted to float32 on the way in, and rounded on the way out: for
// a projection, for a single step, where there is little to convert, and where the processor has
// no kernels for it.
bool computes_in_float32(const CpuTask& task, const CpuMachine& machine, const GemmKernels& gemm) {
  if (bytes_of(task.dtype) != 2) return false;
  const bool own = gemm.takes(task.dtype);
  const bool is_one_step = task.steps == 1 && task.is_dense && !task.has_resets;
  if (!task.prepacked) return task.projects || (is_one_step && !own);
  if (task.dtype == Dtype::kBFloat16)
    return !own || task.projects || !machine.training_gemm(task.dtype);
  return gemm.format != Format::float32 || task.projects || is_one_step;
}

// The product of a task that is not converted.
const GemmKernels& gemm_for(const CpuTask& task, const CpuMachine& machine) {
  if (task.prepacked) return *machine.gemms[*task.prepacked];
  const bool is_float32 = task.dtype == Dtype::kFloat32;
  const GemmKernels* const split = machine.gemms[Format::bfloat16x2];
  // A single step reads each weight once, and is bound by that.
  if (split && is_float32 && task.precision == Precision::kTf32 && task.steps > 1) return *split;
  const bool rounds = is_float32 && !task.projects && task.precision == Precision::kBf16;
  const GemmKernels* const own = machine.training_gemm(rounds ? Dtype::kBFloat16 : task.dtype);
  return own ? *own : *machine.gemms[Format::float32];
}

// The fastest division of a step by a model of its time: directions at the same time where there
// are two, row groups where the weights of all units fit into the L2 cache of a core, and there are
// rows enough. Loads run ahead of the arithmetic of our tiles, so the longer of the two counts.
ThreadGrid walk_grid(const CpuTask& task, const CpuMachine& machine, const CpuPlan& plan) {
  // A thread's rates, in microseconds: multiply-adds of float32, bytes from beyond the L2 cache,
  // and a barrier on an idle machine, for each thread that meets there.
  constexpr double kMultiplyAdds = 1.2e5, kBytes = 4e4, kBarrier = 0.25;
  const GemmKernels& gemm = *plan.gemm;
  const double hidden = task.hidden_size;
  const double cache_bytes = gemm.l2_share * machine.l2_cache_bytes;
  const int64_t tiles = divide_up(task.hidden_size, gemm.lanes);
  const int64_t min_rows_per_panel_load =
      gemm.takes(plan.dtype) ? gemm.min_rows_per_panel_load : gemm.min_encoded_rows_per_panel_load;
  const double work = task.total_rows * 4 * hidden * hidden;
  const int64_t threads = std::min<int64_t>(machine.threads, 1 + work / kWalkMultiplyAddsPerThread);
  ThreadGrid fastest;
  double least_us = 1e300;
  const auto consider = [&](const ThreadGrid& grid) {
    if (grid.row_groups > task.batch || grid.unit_groups > tiles) return;
    const int64_t rows = divide_up(task.batch, grid.row_groups);
    const double weights = 4 * hidden * gemm.lanes * divide_up(tiles, grid.unit_groups);
    const double arithmetic =
        weights * std::max(rows, min_rows_per_panel_load) / gemm.relative_speed / kMultiplyAdds;
    const double bytes = weights * gemm.element_bits / 8;
    const double loading = bytes > cache_bytes ? bytes / kBytes : 0;
    const double barrier = grid.unit_groups > 1 ? grid.unit_groups * kBarrier : 0;
    const double us = task.directions / grid.directions * (std::max(arithmetic, loading) + barrier);
    if (us < least_us) least_us = us, fastest = grid;
  };
  for (int64_t directions = task.directions; directions >= 1; --directions)
    for (int64_t workers = 1; workers <= threads / directions; ++workers)
      for (int64_t row_groups = 1; row_groups <= workers; ++row_groups)
        if (workers % row_groups == 0) consider({workers / row_groups, row_groups, directions});
  return fastest;
}

// Whether every form of a matrix gives the same bits: the weights have the dtype of the sums.
bool forms_give_same_bits(const CpuTask& task, const CpuPlan& plan) {
  return !task.prepacked && plan.gemm->takes(plan.dtype) && plan.gemm->sum_dtype == plan.dtype;
}

// The form of a matrix [K,4H] that the call reads `reads` times, each time for `rows` rows at most.
// Packing reads and writes the matrix once more. Then a read is faster: a little if it comes from
// memory, much if it comes from the L2 cache.
MatrixForm form_of(const CpuTask& task, const CpuMachine& machine, const CpuPlan& plan, int64_t K,
                   int64_t reads, int64_t rows) {
  const GemmKernels& gemm = *plan.gemm;
  const bool any = forms_give_same_bits(task, plan);
  // 16 bits: only a single step, and one that trains only if the product takes their dtype.
  const bool is_own = machine.training_gemm(plan.dtype) && task.is_dense &&
                      (!task.saves_for_backward || gemm.takes(plan.dtype));
  if (!any && (task.steps > 1 || task.prepacked || !(task.backward || is_own)))
    return MatrixForm::kPanels;
  const int64_t times_l2 = gemm.bytes(4 * task.hidden_size * K) / machine.l2_cache_bytes;
  const int64_t few_reads = std::min<int64_t>(3 + times_l2, 16);
  // Forward, a panel for more rows costs less than transposing the weights for every tile of rows.
  const int64_t few_rows = reads > 1 ? 8 : task.backward ? 32 : 12;
  if (rows <= few_rows && reads <= few_reads && (any || !task.backward))
    return MatrixForm::kInPlace;
  const bool is_step = task.steps == 1 && !task.backward;
  const bool is_few = reads <= 2 && rows <= kMaxRowsOnDemand && (task.steps == 1 || times_l2 > 0);
  return is_step || is_few ? MatrixForm::kPanelOnDemand : MatrixForm::kPanels;
}

// The threads of a single step forward, which reading the weights bounds. Where there are more
// threads than vectors of units, they share the rows.
ThreadGrid single_step_grid(const CpuTask& task, const CpuMachine& machine, const CpuPlan& plan) {
  const int64_t weights = 4 * task.hidden_size * (task.input_size + task.output_size);
  const int64_t vectors = divide_up(task.hidden_size, plan.gemm->lanes);
  ThreadGrid grid;
  if (!task.prepacked)
    grid.row_groups =
        std::clamp<int64_t>(task.batch / 64, 1, std::max<int64_t>(machine.threads / vectors, 1));
  const int64_t worth =
      task.prepacked ? plan.gemm->bytes(weights) * divide_up(task.batch, 4) / kStepBytesPerThread
                     : weights * task.batch / grid.row_groups / kStepMultiplyAddsPerThread;
  grid.unit_groups =
      std::clamp<int64_t>(worth, 1, std::min(machine.threads / grid.row_groups, vectors));
  return grid;
}

// Rows and tiles of a step between cell equations. Short rows take few calls around many of
// them; of long rows a few are better. Where weights lie as they are, vectors of a gate are
// neighbors in memory, so many of them come first.
void size_cell_buffer(const CpuTask& task, CpuPlan& plan) {
  constexpr int64_t kShortRow = 1024, kSums = 256 << 10;  // bytes
  const GemmKernels& gemm = *plan.gemm;
  const int64_t rows = divide_up(task.batch, plan.grid.row_groups);
  const int64_t most = gemm.bytes(task.hidden_size) <= kShortRow ? 48 : 12;
  plan.buffer_rows = round_up(std::min(rows, most), gemm.tile_rows);
  if (plan.w_hh == MatrixForm::kPanels || task.backward) return;
  plan.buffer_rows = rows;
  const int64_t bytes = 4 * gemm.lanes * bytes_of(gemm.sum_dtype) * (rows + 1);
  const int64_t tiles = divide_up(divide_up(task.hidden_size, gemm.lanes), plan.grid.unit_groups);
  if (plan.w_hh == MatrixForm::kInPlace)
    plan.buffer_unit_vectors = std::clamp<int64_t>(kSums / bytes, 1, tiles);
}

// Steps whose gates are computed from the input at once, then walked while they are in cache. 0
// where a step has rows enough for reading W_ih: then the input is multiplied beside h.
int64_t steps_ahead(const CpuTask& task, const CpuMachine& machine, const CpuPlan& plan) {
  const GemmKernels& gemm = *plan.gemm;
  // If the gates of all steps take less memory than W_ih, then W_ih is read only once.
  if (forms_give_same_bits(task, plan) &&
      task.steps * task.batch <= std::min(task.input_size, kMaxRowsOnDemand))
    return task.steps;
  const int64_t rows_of_step = task.total_rows / task.steps;
  if (rows_of_step >=
      std::max(machine.min_rows_to_fuse_input, gemm.tile_rows * plan.grid.row_groups))
    return 0;
  const int64_t bytes_of_row = 4 * task.hidden_size * (plan.dtype == Dtype::kFloat64 ? 8 : 4);
  const int64_t rows_ahead = std::max(gemm.bytes_ahead / bytes_of_row, gemm.tile_rows);
  const int64_t steps = rows_ahead / std::max<int64_t>(task.batch, 1);
  // Two directions at the same time share the cache.
  return steps > 1 ? std::clamp<int64_t>(steps / plan.grid.directions, 1, task.steps) : 0;
}

// Steps whose gradients are walked, then multiplied while they are in cache: more of them with
// larger weights, whose gradients every chunk reads and writes.
int64_t chunk_steps(const CpuTask& task, const CpuPlan& plan) {
  const int64_t chunk_bytes = plan.dtype == Dtype::kFloat64 ? 3 << 17 : 1 << 20;
  const int64_t rows =
      std::max<int64_t>(chunk_bytes / (4 * task.hidden_size * bytes_of(plan.dtype)),
                        (task.input_size + task.hidden_size) / 2);
  return std::clamp<int64_t>(rows / std::max<int64_t>(task.batch, 1), 1, task.steps);
}

}  // namespace

const GemmKernels* CpuMachine::training_gemm(Dtype dtype) const {
  const auto format = format_of(dtype);
  const GemmKernels* const gemm = format ? gemms[*format] : nullptr;
  return gemm && gemm->trains() ? gemm : nullptr;
}

CpuPlan make_plan(const CpuTask& task, const CpuMachine& machine) {
  CpuPlan plan;
  plan.dtype = task.dtype;
  const bool is_empty = task.input_size == 0 || task.hidden_size == 0 || task.output_size == 0;
  if (task.needs_stepwise || is_empty) {
    if (bytes_of(task.dtype) == 2 && !machine.has_16_bit_row_kernels) plan.dtype = Dtype::kFloat32;
    return plan;
  }
  plan.gemm = &gemm_for(task, machine);
  if (computes_in_float32(task, machine, *plan.gemm)) {
    plan.dtype = Dtype::kFloat32;
    if (!task.prepacked) plan.gemm = machine.gemms[Format::float32];
  }
  if (task.batch < plan.gemm->few_rows_limit) plan.gemm = plan.gemm->few_rows_gemm;
  plan.w_hh = form_of(task, machine, plan, task.output_size, task.steps, task.batch);
  const bool is_step = !task.backward && task.steps == 1 &&
                       (plan.w_hh != MatrixForm::kPanels || (task.prepacked && task.is_dense));
  if (plan.w_hh != MatrixForm::kPanels && !task.backward)
    plan.gemm = machine.training_gemm(plan.dtype);
  plan.grid = is_step ? single_step_grid(task, machine, plan) : walk_grid(task, machine, plan);
  size_cell_buffer(task, plan);
  plan.steps_ahead = is_step ? 0 : steps_ahead(task, machine, plan);
  plan.chunk_steps = chunk_steps(task, plan);
  const int64_t at_once = task.backward ? plan.chunk_steps : plan.steps_ahead;
  plan.w_ih = at_once == 0
                  ? plan.w_hh
                  : form_of(task, machine, plan, task.input_size, divide_up(task.steps, at_once),
                            std::min(at_once * task.batch, task.total_rows));
  return plan;
}

}  // namespace fastlstm
