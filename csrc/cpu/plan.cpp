#include "plan.h"

#include <algorithm>
#if defined(__linux__)
#include <unistd.h>
#endif

#include "parts.h"

namespace fastlstm {
namespace {

CpuEngine engine_of(const CpuTask& task) {
  const bool empty = task.input_size == 0 || task.hidden_size == 0 || task.output_size == 0;
  return task.engine == "stepwise" || task.only_stepwise || empty ? CpuEngine::kStepwise
                                                                  : CpuEngine::kTiled;
}

// Whether a layer of 16 bits is converted to float32 on the way in, and rounded on the way out: for
// a projection, for a single step, where there is little to convert, and where the processor has
// no kernels for it.
bool is_converted(const CpuTask& task, const CpuMachine& machine, const Product& product) {
  if (bytes_of(task.dtype) != 2) return false;
  const bool own = product.takes(task.dtype);
  if (!task.packed_weights) return task.projects || (task.is_one_step() && !own);
  if (task.dtype == Dtype::kBFloat16)
    return !own || task.projects || !machine.own_product(task.dtype);
  return product.format != Format::float32 || task.projects || task.is_one_step();
}

// The fastest division of a step by a model of its time: directions at the same time where there
// are two, row groups where the weights of all units fit into the L2 cache of a core, and there are
// rows enough. Loads run ahead of the arithmetic of our tiles, so the longer of the two counts.
void divide_among_threads(const CpuTask& task, const CpuMachine& machine, CpuPlan& plan) {
  const CpuTuning& tuning = machine.tuning;
  const Product& product = *plan.product;
  const double hidden = task.hidden_size;
  const double cache_bytes = product.cache_share * machine.l2_cache_bytes;
  const int64_t tiles = divide_up(task.hidden_size, product.lanes);
  const int64_t panel_rows =
      product.takes(plan.dtype) ? product.panel_rows : product.panel_rows_encoded;
  const double work = task.rows * 4 * hidden * hidden;
  const int64_t threads = std::min<int64_t>(machine.threads, 1 + work / kWalkWorthAThread);
  plan.step_us = 1e300;
  const auto consider = [&](int64_t directions, int64_t used) {
    for (int64_t row_groups = 1; row_groups <= used; ++row_groups) {
      if (used % row_groups != 0) continue;
      const int64_t unit_groups = used / row_groups;
      if (row_groups > task.batch || unit_groups > tiles) continue;
      const int64_t rows = divide_up(task.batch, row_groups);
      const double weights = 4 * hidden * product.lanes * divide_up(tiles, unit_groups);
      const double arithmetic =
          weights * std::max(rows, panel_rows) / product.rate / tuning.multiply_adds_per_us;
      const double bytes = weights * product.bits / 8;
      const double loading = bytes > cache_bytes ? bytes / tuning.bytes_per_us : 0;
      const double barrier = unit_groups > 1 ? unit_groups * tuning.barrier_us : 0;
      const double us = task.directions / directions * (std::max(arithmetic, loading) + barrier);
      if (us < plan.step_us) plan.step_us = us, plan.grid = {unit_groups, row_groups, directions};
    }
  };
  for (int64_t used = 1; used <= threads / task.directions; ++used) consider(task.directions, used);
  if (task.directions > 1)
    for (int64_t used = 1; used <= threads; ++used) consider(1, used);
}

// The members of a single step with packed weights, which reading them bounds.
int64_t unit_groups_of_packed_step(const CpuTask& task, const CpuMachine& machine) {
  const int64_t weights = 4 * task.hidden_size * (task.input_size + task.output_size);
  const int64_t bytes =
      machine.products[*task.packed_weights]->bytes(weights) * divide_up(task.batch, 4);
  const int64_t most = std::min(machine.threads, divide_up(task.hidden_size, 16));
  return std::clamp<int64_t>(bytes / kBytesWorthAThread, 1, most);
}

// Where there are more threads than vectors of units, they share the rows of a single step.
int64_t row_groups_of_one_step(const CpuTask& task, const CpuMachine& machine,
                               const Product& product) {
  const int64_t vectors = divide_up(task.hidden_size, product.lanes);
  const int64_t most = std::max<int64_t>(machine.threads / vectors, 1);
  return std::clamp<int64_t>(task.batch / 64, 1, most);
}

// Steps whose gates are computed from the input at once, then walked while they are in cache. 0
// where a step has rows enough for reading W_ih: then the input is multiplied beside h.
int64_t steps_ahead(const CpuTask& task, const CpuMachine& machine, const CpuPlan& plan) {
  const Product& product = *plan.product;
  const int64_t rows_of_step = task.rows / std::max<int64_t>(task.steps, 1);
  if (rows_of_step >= std::max(machine.tuning.rows_beside_h, product.rows * plan.grid.row_groups))
    return 0;
  const int64_t bytes_of_row = 4 * task.hidden_size * (plan.dtype == Dtype::kFloat64 ? 8 : 4);
  const int64_t rows_ahead = std::max(product.bytes_ahead / bytes_of_row, product.rows);
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

int64_t l2_cache_bytes() {
#if defined(__linux__) && defined(_SC_LEVEL2_CACHE_SIZE)
  static const int64_t known = sysconf(_SC_LEVEL2_CACHE_SIZE);
#else
  constexpr int64_t known = 0;
#endif
  return known > 0 ? known : 1 << 20;
}

bool has_engine(const CpuTask& task) {
  return task.engine == "stepwise" || task.engine == "auto" ||
         (task.engine == "tiled" && !task.only_stepwise);
}

const Product* CpuMachine::own_product(Dtype dtype) const {
  const auto format = format_of(dtype);
  const Product* const product = format ? products[*format] : nullptr;
  return product && product->trains() ? product : nullptr;
}

const Product& product_for(const CpuTask& task, const CpuMachine& machine) {
  if (task.packed_weights) return *machine.products[*task.packed_weights];
  const bool is_float32 = task.dtype == Dtype::kFloat32;
  const Product* const split = machine.products[Format::bfloat16x2];
  // A single step reads each weight once, and is bound by that.
  if (split && is_float32 && task.precision == Precision::kTf32 && task.steps > 1) return *split;
  const bool rounds = is_float32 && !task.projects && task.precision == Precision::kBf16;
  const Product* const own = machine.own_product(rounds ? Dtype::kBFloat16 : task.dtype);
  return own ? *own : *machine.products[Format::float32];
}

CpuPlan plan(const CpuTask& task, const CpuMachine& machine) {
  constexpr int64_t kFewRows = 512;
  CpuPlan plan;
  plan.engine = engine_of(task);
  plan.dtype = task.dtype;
  if (plan.engine == CpuEngine::kStepwise) {
    if (bytes_of(task.dtype) == 2 && !machine.rows_of_16_bits) plan.dtype = Dtype::kFloat32;
    return plan;
  }
  const Product* product = &product_for(task, machine);
  if (is_converted(task, machine, *product)) {
    plan.dtype = Dtype::kFloat32;
    if (!task.packed_weights) product = machine.products[Format::float32];
  }
  // A step that trains multiplies in the product's dtype, if that has fewer bits.
  plan.one_step = !task.backward && task.steps == 1 && task.only_dense && !task.packed_weights &&
                  machine.own_product(plan.dtype) && (!task.saves || product->takes(plan.dtype));
  if (plan.one_step) product = machine.own_product(plan.dtype);
  plan.product = product;
  plan.fetches_next_panels = machine.tuning.fetches_next_panels;
  plan.leaves_unpacked =
      task.backward && task.steps == 1 && task.batch <= kFewRows && !task.projects;
  if (task.packed_weights && task.is_one_step() && task.directions == 1)
    plan.grid.unit_groups = unit_groups_of_packed_step(task, machine);
  else
    divide_among_threads(task, machine, plan);
  if (plan.one_step) {
    plan.step_row_groups = row_groups_of_one_step(task, machine, *product);
    plan.prefetches_weights =
        divide_up(task.batch, plan.step_row_groups) >= machine.tuning.rows_worth_prefetching;
  }
  plan.steps_ahead = steps_ahead(task, machine, plan);
  plan.chunk_steps = chunk_steps(task, plan);
  return plan;
}

}  // namespace fastlstm
