// The decisions of the planner, one function each. Their constants come from measurements.
#include "plan.h"

#include <algorithm>

#include "parts.h"

namespace fastlstm {
namespace {

// A thread is used only if it gets at least this much work, since waking it takes microseconds.
constexpr int64_t kWalkMultiplyAddsPerThread = 1 << 21;  // in all steps of a walk
constexpr int64_t kStepMultiplyAddsPerThread = 1 << 17;  // in a single step
constexpr int64_t kStepBytesPerThread = 128 << 10;       // prepacked weights, read once per 4 rows

// The largest number of rows for which panels are packed on demand.
constexpr int64_t kMaxRowsOnDemand = 768;

// Whether a 16-bit layer is computed in float32: its tensors are converted before, and its results
// are rounded after. With prepacked weights, two cases keep the 16-bit dtype: bfloat16 with weights
// of bfloat16 and a training_gemm; float16 with weights of float32, several steps, no projection.
bool computes_in_float32(const CpuTask& task, const CpuMachine& machine, const GemmKernels& gemm) {
  if (bytes_of(task.dtype) != 2) return false;
  const bool takes_dtype = gemm.takes(task.dtype);
  const bool is_one_step = task.steps == 1 && task.is_dense && !task.has_resets;
  if (!task.prepacked) return !takes_dtype && (task.projects || is_one_step);
  if (task.dtype == Dtype::kBFloat16) return !takes_dtype || !machine.training_gemm(task.dtype);
  return gemm.format != Format::float32 || task.projects || is_one_step;
}

// Whether a layer multiplies 16-bit weights in place, even if larger layers of its dtype multiply
// float32: in a single step of few rows, where converting the weights takes longer. The bits are
// those of float32, except with a projection, whose input would be rounded.
bool reads_16_bits_once(const CpuTask& task, const GemmKernels& gemm) {
  return bytes_of(task.dtype) == 2 && task.steps == 1 && task.is_dense && !task.prepacked &&
         !task.backward && !task.projects && task.batch <= gemm.max_rows_in_place;
}

// Returns the first choice of kernels for a layer. make_plan may still replace them.
const GemmKernels& gemm_for(const CpuTask& task, const CpuMachine& machine) {
  if (task.prepacked) return *machine.gemms[*task.prepacked];
  const GemmKernels& own = *machine.gemms[format_of(task.dtype)];
  if (reads_16_bits_once(task, own)) return own;
  const bool is_float32 = task.dtype == Dtype::kFloat32;
  const GemmKernels* const split = machine.gemms[Format::bfloat16x2];
  // A single step is bound by reading the weights once, so splitting them would not pay.
  if (split && is_float32 && task.precision == Precision::kTf32 && task.steps > 1) return *split;
  const bool uses_bf16 = is_float32 && !task.projects && task.precision == Precision::kBf16;
  const GemmKernels* const gemm = machine.training_gemm(uses_bf16 ? Dtype::kBFloat16 : task.dtype);
  return gemm ? *gemm : *machine.gemms[Format::float32];
}

// Whether each step of a forward walk multiplies its own input, which is not narrow.
bool fuses_input(const CpuTask& task, const CpuMachine& machine, const CpuPlan& plan) {
  // If the weights take a larger share of the L3 cache, few rows would wait for W_ih at every step.
  constexpr double kL3ShareOfWeights = 0.3;
  constexpr int64_t kRowsPerLoad = 48;
  const int64_t bytes = plan.gemm->bytes(task.weights()) * plan.grid.directions;
  const bool fits = bytes <= kL3ShareOfWeights * machine.l3_cache_bytes;
  const int64_t rows = task.mean_rows();
  return rows >= machine.min_rows_to_fuse_input && (fits || rows >= kRowsPerLoad);
}

// Returns the fastest division of a walk among threads, by a model of the time of one step.
ThreadGrid walk_grid(const CpuTask& task, const CpuMachine& machine, const CpuPlan& plan) {
  // In a microsecond a thread computes kMultiplyAddsPerUs of float32, or loads kBytesPerUs that
  // are not in its L2 cache, if no other program runs: fewer if all threads together read more
  // than kL3Share of the L3 cache. A barrier takes kBarrierUs per unit group.
  constexpr double kMultiplyAddsPerUs = 1.2e5, kBytesPerUs = 4e4, kL3Share = 0.4, kBarrierUs = 0.25;
  const GemmKernels& gemm = *plan.gemm;
  const double hidden = task.hidden_size;
  const double cache_bytes = gemm.l2_share * machine.l2_cache_bytes;
  const int64_t unit_vectors = divide_up(task.hidden_size, gemm.lanes);
  const int64_t min_rows =
      gemm.takes(plan.dtype) ? gemm.min_rows_per_panel_load : gemm.min_encoded_rows_per_panel_load;
  const bool multiplies_input = !task.backward && fuses_input(task, machine, plan);
  const double work = task.total_rows * 4 * hidden * (hidden + multiplies_input * task.input_size);
  const int64_t threads = std::min<int64_t>(machine.threads, 1 + work / kWalkMultiplyAddsPerThread);
  ThreadGrid fastest;
  double least_us = 1e300;
  const auto consider = [&](const ThreadGrid& grid) {
    const int64_t rows = divide_up(task.batch, grid.row_groups);
    const double weights = 4 * hidden * gemm.lanes * divide_up(unit_vectors, grid.unit_groups);
    const double arithmetic =
        weights * std::max(rows, min_rows) / gemm.relative_speed / kMultiplyAddsPerUs;
    const double bytes = weights * gemm.element_bits / 8;
    const double l3_caches = bytes * grid.unit_groups * grid.directions / machine.l3_cache_bytes;
    const double bytes_per_us = kBytesPerUs / (1 + 3 * std::max(l3_caches - kL3Share, 0.0));
    const double loading = bytes > cache_bytes ? bytes / bytes_per_us : 0;
    const double barrier = grid.unit_groups > 1 ? grid.unit_groups * kBarrierUs : 0;
    const double us = task.directions / grid.directions * (std::max(arithmetic, loading) + barrier);
    if (us < least_us) least_us = us, fastest = grid;
  };
  for (int64_t directions = task.directions; directions >= 1; --directions)
    for (int64_t workers = 1; workers <= threads / directions; ++workers)
      for (int64_t row_groups = 1; row_groups <= workers; ++row_groups)
        if (workers % row_groups == 0) consider({workers / row_groups, row_groups, directions});
  return fastest;
}

// Returns the division of a single forward step among threads. Reading the weights bounds it, so
// threads divide the units, and the rows only if there are more threads than vectors of units.
ThreadGrid single_step_grid(const CpuTask& task, const CpuMachine& machine, const CpuPlan& plan) {
  const int64_t unit_vectors = divide_up(task.hidden_size, plan.gemm->lanes);
  ThreadGrid grid;
  if (!task.prepacked)
    grid.row_groups = std::clamp<int64_t>(task.batch / 64, 1,
                                          std::max<int64_t>(machine.threads / unit_vectors, 1));
  const int64_t useful_threads =
      task.prepacked
          ? plan.gemm->bytes(task.weights()) * divide_up(task.batch, 4) / kStepBytesPerThread
          : task.weights() * task.batch / grid.row_groups / kStepMultiplyAddsPerThread;
  grid.unit_groups =
      std::clamp<int64_t>(useful_threads, 1, std::min(machine.threads, unit_vectors));
  return grid;
}

// Whether products take rows of the plan's dtype as they are, and add them in that dtype. Then all
// forms of a matrix give the same bits.
bool keeps_dtype(const CpuPlan& plan) {
  return plan.gemm->takes(plan.dtype) && plan.gemm->sum_dtype == plan.dtype;
}

// Returns the best form of a matrix [K,4H] that the call reads `reads` times, each time for at most
// `rows` rows. Packing its panels costs one more read and a write. Each read is then faster: a
// little if the matrix comes from memory, much if it comes from the L2 cache.
MatrixForm matrix_form(const CpuTask& task, const CpuMachine& machine, const CpuPlan& plan,
                       int64_t K, int64_t reads, int64_t rows) {
  const GemmKernels& gemm = *plan.gemm;
  // Panels on demand give the bits of panels if the kernels take the rows without encoding. If rows
  // are encoded, only a single step may have another form: in backward, or in a forward pass that
  // has training kernels and saves nothing for backward, so that both passes round alike.
  const bool takes_dtype = !task.prepacked && gemm.takes(plan.dtype);
  const bool can_replace_gemm =
      machine.training_gemm(plan.dtype) && task.is_dense && !task.saves_for_backward;
  if (!takes_dtype && (task.steps > 1 || task.prepacked || !(task.backward || can_replace_gemm)))
    return MatrixForm::kPanels;
  const int64_t l2_caches_filled = gemm.bytes(4 * task.hidden_size * K) / machine.l2_cache_bytes;
  const int64_t max_reads = std::min<int64_t>(3 + l2_caches_filled, 16);
  // In place, a forward product transposes the weights in registers anew for every tile of rows.
  // A product of bfloat16 in backward interleaves them, which pays for fewer rows, too.
  const bool is_one_step = task.steps == 1, same_bits = keeps_dtype(plan);
  const bool allows_in_place =
      same_bits || (is_one_step && task.is_dense && (takes_dtype || !task.backward));
  const int64_t max_rows = reads > 1                    ? 8
                           : task.backward && same_bits ? 192
                                                        : gemm.max_rows_in_place;
  if (allows_in_place && rows <= max_rows && reads <= max_reads) return MatrixForm::kInPlace;
  // Threads find panels that they packed themselves in their caches, if each gets its share.
  const bool threads_share_panels = reads == 1 && !task.backward && machine.threads > 1 &&
                                    machine.threads * gemm.max_width() <= 2 * task.hidden_size;
  const bool pays = is_one_step || l2_caches_filled > 0 || threads_share_panels;
  const bool is_on_demand =
      (is_one_step && !task.backward) || (pays && reads <= 2 && rows <= kMaxRowsOnDemand);
  return is_on_demand ? MatrixForm::kPanelOnDemand : MatrixForm::kPanels;
}

// Chooses buffer_rows and buffer_unit_vectors. If h is short, many rows at a time need fewer calls
// of the kernels; if h is long, a few rows at a time are faster. Weights in place are read one gate
// after the other, so many vectors of units at a time make these reads contiguous.
void size_cell_buffer(const CpuTask& task, CpuPlan& plan) {
  constexpr int64_t kSmallRowBytes = 1024, kBufferBytes = 256 << 10;
  const GemmKernels& gemm = *plan.gemm;
  const int64_t rows = divide_up(task.batch, plan.grid.row_groups);
  const int64_t max_rows = gemm.bytes(task.hidden_size) <= kSmallRowBytes ? 48 : 12;
  plan.buffer_rows = round_up(std::min(rows, max_rows), gemm.tile_rows);
  if (plan.w_hh == MatrixForm::kPanels || task.backward) return;
  plan.buffer_rows = rows;
  if (plan.w_hh != MatrixForm::kInPlace) return;
  const int64_t bytes_of_vector = 4 * gemm.lanes * bytes_of(gemm.sum_dtype) * (rows + 1);
  const int64_t unit_vectors =
      divide_up(divide_up(task.hidden_size, gemm.lanes), plan.grid.unit_groups);
  plan.buffer_unit_vectors = std::min(kBufferBytes / bytes_of_vector, unit_vectors);
}

// Returns CpuPlan::steps_ahead: the number of steps whose x_gates stay in the cache until the walk
// reads them, or 0 if reading W_ih at every step is cheaper.
int64_t steps_ahead(const CpuTask& task, const CpuMachine& machine, const CpuPlan& plan) {
  const GemmKernels& gemm = *plan.gemm;
  // If x_gates of all steps take little memory compared with W_ih, one product reads W_ih once.
  const int64_t rows = keeps_dtype(plan) ? task.steps * task.batch : INT64_MAX;
  if (!task.prepacked && rows <= std::min(task.input_size, kMaxRowsOnDemand)) return task.steps;
  // Multiplying a narrow input at every step costs less than writing and reading its x_gates.
  const bool is_narrow = gemm.takes(plan.dtype) && task.input_size <= task.hidden_size / 16;
  const bool fills_tiles = task.mean_rows() >= gemm.tile_rows * plan.grid.row_groups;
  if (fills_tiles && (is_narrow || fuses_input(task, machine, plan))) return 0;
  if (rows <= 2 * task.input_size) return task.steps;
  const int64_t bytes_of_row = 4 * task.hidden_size * (plan.dtype == Dtype::kFloat64 ? 8 : 4);
  const int64_t rows_ahead = std::max(gemm.bytes_ahead / bytes_of_row, gemm.tile_rows);
  const int64_t steps = rows_ahead / std::max<int64_t>(task.batch, 1);
  // Two directions at the same time share the cache.
  return steps > 1 ? std::clamp<int64_t>(steps / plan.grid.directions, 1, task.steps) : 0;
}

// Returns CpuPlan::chunk_steps: the number of steps whose d_gates fit into the cache, or more if
// the weights are large, because every chunk reads and writes the gradients of the weights.
int64_t chunk_steps(const CpuTask& task, const CpuPlan& plan) {
  const int64_t chunk_bytes = plan.dtype == Dtype::kFloat64 ? 3 << 17 : 1 << 20;
  const int64_t rows = std::max<int64_t>(chunk_bytes / plan.gemm->bytes(4 * task.hidden_size),
                                         (task.input_size + task.hidden_size) / 2);
  return std::clamp<int64_t>(rows / std::max<int64_t>(task.batch, 1), 1, task.steps);
}

}  // namespace

const GemmKernels* CpuMachine::training_gemm(Dtype dtype) const {
  const GemmKernels* const gemm = gemms[format_of(dtype)];
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
  if (computes_in_float32(task, machine, *plan.gemm)) plan.dtype = Dtype::kFloat32;
  if (task.batch < plan.gemm->few_rows_limit) plan.gemm = plan.gemm->few_rows_gemm;
  plan.w_hh = matrix_form(task, machine, plan, task.output_size, task.steps, task.batch);
  const bool has_panels = plan.w_hh == MatrixForm::kPanels;
  const bool is_single_step =
      !task.backward && task.steps == 1 && (!has_panels || (task.prepacked && task.is_dense));
  if (!has_panels && !task.backward && !plan.gemm->takes(plan.dtype))
    plan.gemm = machine.training_gemm(plan.dtype);
  plan.grid =
      is_single_step ? single_step_grid(task, machine, plan) : walk_grid(task, machine, plan);
  size_cell_buffer(task, plan);
  plan.steps_ahead = is_single_step ? 0 : steps_ahead(task, machine, plan);
  plan.chunk_steps = chunk_steps(task, plan);
  const int64_t input_steps = task.backward ? plan.chunk_steps : plan.steps_ahead;
  plan.w_ih = input_steps == 0 ? plan.w_hh
                               : matrix_form(task, machine, plan, task.input_size,
                                             divide_up(task.steps, input_steps),
                                             std::min(input_steps * task.batch, task.total_rows));
  return plan;
}

}  // namespace fastlstm
