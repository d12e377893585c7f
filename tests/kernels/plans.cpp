// The CPU planner for known machines: what every plan must satisfy, a table of expected plans, and
// that the machines have the settings of the real kernels.
#include <initializer_list>
#include <iomanip>

#include "cpu/gemm/gate_order.h"
#include "cpu/plan.h"
#include "expected_plans.h"
#include "parts.h"
#include "targets.h"

namespace {

using namespace fastlstm;
using testing::check;

// Returns GemmKernels with only the fields that the planner reads. Its functions do nothing.
GemmKernels gemm_of(Format format, int64_t bytes, int64_t lanes, int64_t rows, bool trains = true) {
  GemmKernels gemm{};
  gemm.format = gemm.source_format = format, gemm.element_bits = 8 * bytes, gemm.lanes = lanes;
  gemm.sum_dtype = format == Format::float64 ? Dtype::kFloat64 : Dtype::kFloat32;
  gemm.tile_rows = rows, gemm.max_vectors = 4, gemm.relative_speed = 4.0 / bytes;
  if (format == Format::float16) gemm.max_rows_in_place = rows;
  if (format != Format::float32 && format != Format::float64 && format != Format::float16)
    gemm.encode = [](const void*, int64_t, void*) {};
  if (bytes == 8) gemm.bytes_ahead = 3 << 17;
  if (trains) gemm.transpose = [](const void* const*, int64_t, int64_t, int64_t, void*) {};
  return gemm;
}

std::map<std::string, CpuMachine> machines() {
  static const auto table_of = [](int64_t lanes, int64_t rows, int64_t int8_rows, bool bfloat16) {
    const auto* const all = new GemmKernels[]{gemm_of(Format::float32, 4, lanes, rows),
                                              gemm_of(Format::float64, 8, lanes / 2, rows),
                                              gemm_of(Format::bfloat16, 2, lanes, rows, bfloat16),
                                              gemm_of(Format::int8, 1, lanes, int8_rows, false),
                                              gemm_of(Format::float16, 2, lanes, rows, false)};
    return GemmTable{{all, all + 1, all + 2, all + 3, nullptr, all + 4}};
  };
  static const GemmTable avx512 = table_of(16, 6, 4, false), avx512_bf16 = table_of(16, 6, 6, true),
                         avx2 = table_of(8, 6, 4, false), neon = table_of(4, 5, 4, true),
                         sse = table_of(4, 2, 2, false);
  static const GemmTable amx = [] {
    static GemmKernels tiles = *avx512_bf16[Format::bfloat16];
    tiles.tile_rows = 64, tiles.min_rows_per_panel_load = 128, tiles.bytes_ahead = 256 << 10;
    tiles.max_rows_in_place = 5;
    static GemmKernels int8 = *avx512_bf16[Format::int8];
    int8.tile_rows = 64, int8.few_rows_limit = 8, int8.few_rows_gemm = avx512_bf16[Format::int8];
    static GemmKernels split = gemm_of(Format::bfloat16x2, 4, 16, 64);
    split.source_format = Format::float32, split.relative_speed = 3.5, split.bytes_ahead = 0;
    split.min_rows_per_panel_load = split.min_encoded_rows_per_panel_load = 48;
    split.l2_share = 0.8;
    GemmTable gemms = avx512_bf16;
    gemms[Format::bfloat16] = &tiles, gemms[Format::int8] = &int8;
    gemms[Format::bfloat16x2] = &split;
    return gemms;
  }();
  return {{"Intel with AMX", {1, 2 << 20, amx, true, 48}},
          {"Intel with AVX-512", {1, 1 << 20, avx512, true, 48}},
          {"AMD with AVX-512", {1, 1 << 20, avx512_bf16, true, 12}},
          {"AVX2", {1, 512 << 10, avx2, true}},
          {"NEON", {1, 1 << 20, neon, true}},
          {"SSE2", {1, 256 << 10, sse, false}}};
}

std::string text_of(const std::string& name, const CpuTask& task, const CpuMachine& machine) {
  return testing::text(name, ", ", machine.threads, " threads, dtype ", int(task.dtype), ", T ",
                       task.steps, ", B ", task.batch, ", I ", task.input_size, ", H ",
                       task.hidden_size, ", directions ", task.directions, ", saves ",
                       task.saves_for_backward, ", backward ", task.backward, ", projects ",
                       task.projects, ", weights ", task.prepacked ? int(*task.prepacked) : -1);
}

// Whether kernels multiply rows of a dtype: unchanged, encoded, or converted to float32.
bool can_take(const GemmKernels& gemm, Dtype dtype) {
  if (gemm.takes(dtype)) return true;
  if (dtype == Dtype::kFloat64 || gemm.sum_dtype == Dtype::kFloat64) return false;
  return bytes_of(dtype) == 2 ? gemm.format == Format::float32 : gemm.encode != nullptr;
}

void check_plan(const std::string& what, const CpuTask& task, const CpuMachine& machine) {
  const CpuPlan plan = make_plan(task, machine);
  check(plan.dtype == task.dtype || (bytes_of(task.dtype) == 2 && plan.dtype == Dtype::kFloat32),
        what, ": converted to ", int(plan.dtype));
  if (!plan.gemm) return;  // the stepwise engine
  const ThreadGrid& grid = plan.grid;
  const GemmKernels& gemm = *plan.gemm;
  check(grid.threads() >= 1 && grid.threads() <= machine.threads && grid.row_groups <= task.batch &&
            grid.unit_groups <= (task.hidden_size + gemm.lanes - 1) / gemm.lanes &&
            grid.directions <= task.directions,
        what, ": a grid of ", grid.unit_groups, "x", grid.row_groups, "x", grid.directions);
  check(can_take(gemm, plan.dtype), what, ": dtype ", int(plan.dtype), ", format ",
        int(gemm.format));
  check(!task.projects || bytes_of(plan.dtype) > 2 || gemm.takes(plan.dtype), what,
        ": a projection whose 16-bit rows must be converted");
  if (task.prepacked)
    check(gemm.format == *task.prepacked, what, ": kernels of another format than the weights");
  if (task.backward) check(gemm.trains(), what, ": kernels that cannot train");
  const bool same_dtype = gemm.takes(plan.dtype) && gemm.sum_dtype == plan.dtype;
  for (const MatrixForm form : {plan.w_ih, plan.w_hh}) {
    if (form == MatrixForm::kPanels) continue;
    const bool is_16_bit_step = bytes_of(plan.dtype) == 2 && task.steps == 1 && !task.backward;
    check((gemm.trains() || is_16_bit_step) && !task.prepacked &&
              (gemm.takes(plan.dtype) || task.steps == 1) &&
              (task.backward || gemm.takes(plan.dtype)),
          what, ": a form that these kernels do not have");
    const int64_t few_rows = task.backward && same_dtype ? 192 : 16;
    check(form != MatrixForm::kInPlace ||
              (task.batch <= few_rows && (same_dtype || (task.steps == 1 && task.is_dense))),
          what, ": many rows times weights in place");
  }
  check(plan.steps_ahead >= 0 && plan.steps_ahead <= task.steps && plan.chunk_steps >= 1 &&
            plan.chunk_steps <= task.steps,
        what, ": ", plan.steps_ahead, " steps ahead, chunks of ", plan.chunk_steps);
  check(plan.buffer_rows >= 1 && plan.buffer_unit_vectors >= 1, what, ": ", plan.buffer_rows,
        " rows and ", plan.buffer_unit_vectors, " vectors of units in a buffer");
}

// A task with as many output features as units.
CpuTask task_of(Dtype dtype, int64_t steps, int64_t batch, int64_t input_size, int64_t hidden) {
  CpuTask task{dtype};
  task.steps = steps, task.batch = batch, task.total_rows = steps * batch;
  task.input_size = input_size, task.hidden_size = task.output_size = hidden;
  return task;
}

// Calls body(task) for many kinds of calls, in inference also with prepacked weights.
void for_tasks(const auto& body) {
  for (const Dtype dtype : {Dtype::kFloat64, Dtype::kFloat32, Dtype::kBFloat16, Dtype::kFloat16})
    for (const int64_t steps : {1, 2, 100})
      for (const int64_t batch : {1, 5, 64, 300})
        for (const int64_t hidden : {1, 37, 256, 1024})
          for (const int kind : {0, 1, 2})  // inference, forward of a training, backward
            for (const int options : {0, 1, 2, 4, 7}) {
              CpuTask task = task_of(dtype, steps, batch, 40, hidden);
              task.saves_for_backward = kind == 1, task.backward = kind == 2;
              task.projects = options & 1, task.directions = options & 2 ? 2 : 1;
              task.precision = options & 4 ? Precision::kBf16 : Precision::kFloat32;
              if (task.projects) task.output_size = 1 + hidden / 2;
              body(task);
              for (const Format format :
                   {Format::float32, Format::float64, Format::bfloat16, Format::int8}) {
                if (kind != 0 || (format == Format::float64) != (dtype == Dtype::kFloat64))
                  continue;
                task.prepacked = format;
                body(task);
              }
            }
}

void check_machine(const std::string& name, CpuMachine machine) {
  for_tasks([&](const CpuTask& task) {
    for (const int64_t threads : {1, 2, 3, 16, 128}) {
      machine.threads = threads;
      check_plan(text_of(name, task, machine), task, machine);
    }
  });
}

// The words of expected_plans.h, in the order of the enumerators.
constexpr const char* kDtypeWords[] = {"f64", "f32", "bf16", "f16"};
constexpr const char* kFormatWords[] = {"f32", "f64", "bf16", "int8", "bf16x2", "f16"};
constexpr const char* kFormWords[] = {"panels", "demand", "place"};
constexpr const char* kPrecisionWords[] = {"f32", "tf32", "bf16"};

// Returns the enumerator that `word` names.
template <typename Enum, size_t count>
Enum enumerator_of(const char* const (&words)[count], const std::string& word) {
  size_t k = 0;
  while (k < count && words[k] != word) ++k;
  check(k < count, "expected_plans.h: unknown word ", word);
  return static_cast<Enum>(k);
}

// Changes the task as an option like "D=2" or "rows=7" says.
void apply_option(CpuTask& task, const std::string& option) {
  const size_t equals = option.find('=');
  const std::string name = option.substr(0, equals);
  const std::string value = equals == std::string::npos ? "" : option.substr(equals + 1);
  if (name == "D")
    task.directions = std::stoll(value);
  else if (name == "P")
    task.projects = true, task.output_size = std::stoll(value);
  else if (name == "rows")
    task.is_dense = false, task.total_rows = std::stoll(value);
  else if (name == "resets")
    task.has_resets = true;
  else if (name == "stepwise")
    task.needs_stepwise = true;
  else if (name == "W")
    task.prepacked = enumerator_of<Format>(kFormatWords, value);
  else if (name == "as")
    task.precision = enumerator_of<Precision>(kPrecisionWords, value);
  else
    check(false, "expected_plans.h: unknown option ", option);
}

std::string text_of(const CpuPlan& plan) {
  const std::string dtype = kDtypeWords[int(plan.dtype)];
  if (!plan.gemm) return "stepwise " + dtype;
  const auto& [unit_groups, row_groups, directions] = plan.grid;
  std::ostringstream out;
  out << std::left << std::setw(7) << kFormatWords[int(plan.gemm->format)] << std::setw(5) << dtype
      << std::setw(7) << testing::text(unit_groups, 'x', row_groups, 'x', directions)
      << std::setw(7) << kFormWords[int(plan.w_ih)] << std::setw(6) << kFormWords[int(plan.w_hh)]
      << std::right << std::setw(4) << plan.steps_ahead << std::setw(6) << plan.chunk_steps << ' '
      << plan.buffer_rows << 'x' << plan.buffer_unit_vectors;
  return out.str();
}

// Returns a line of expected_plans.h with the plan that make_plan returns for its task.
std::string with_plan(const std::string& line, CpuMachine machine) {
  std::istringstream words(line.substr(0, line.find("->")));
  std::string kind, dtype, option, options;
  int64_t T = 0, B = 0, I = 0, H = 0;
  words >> machine.threads >> kind >> dtype >> T >> B >> I >> H;
  check(bool(words), "expected_plans.h: not a task: ", line);
  CpuTask task = task_of(enumerator_of<Dtype>(kDtypeWords, dtype), T, B, I, H);
  constexpr const char* kKinds[] = {"infer", "train", "back"};
  const int k = enumerator_of<int>(kKinds, kind);
  task.saves_for_backward = k == 1, task.backward = k == 2;
  for (; words >> option; options += option + " ") apply_option(task, option);
  std::ostringstream out;
  out << std::setw(2) << machine.threads << ' ' << std::left << std::setw(6) << kind << std::setw(4)
      << dtype << std::right << std::setw(4) << T << std::setw(4) << B << std::setw(5) << I
      << std::setw(5) << H << "  " << std::left << std::setw(15) << options << "-> "
      << text_of(make_plan(task, machine));
  return out.str();
}

// Checks every plan of expected_plans.h.
void check_expected_plans() {
  const auto all = machines();
  auto machine = all.end();
  std::istringstream table(kExpectedPlans);
  std::string line, heading, changed;
  for (int k = 0; k < 2; ++k) std::getline(table, line);  // an empty line and names of columns
  while (std::getline(table, line)) {
    if (const size_t colon = line.find(':'); colon != std::string::npos) {
      machine = all.find(line.substr(0, colon));
      check(machine != all.end(), "expected_plans.h: unknown machine: ", line);
      heading = line + '\n';
      continue;
    }
    check(machine != all.end(), "expected_plans.h: no machine before ", line);
    const std::string found = with_plan(line, machine->second);
    if (found == line) continue;
    changed += heading + found + '\n', heading = "";
  }
  check(changed.empty(), "make_plan returns other plans than expected_plans.h for these tasks:\n",
        changed, "If the planner was changed on purpose, replace the lines of these tasks.");
}

// Checks that the gates of the last vector of units have as few lanes as fill whole vectors of the
// kernels.
void check_gate_order() {
  const auto check_order = [](int64_t lanes, int multiple, const std::vector<int64_t>& last_lanes) {
    GemmKernels gemm{};
    gemm.lanes = lanes, gemm.vectors_multiple = multiple;
    for (int64_t H = 1; H <= 2 * lanes; ++H) {
      const GateOrder order(gemm, H);
      const std::string where = testing::text(lanes, " lanes, multiple ", multiple, ", H ", H);
      const int64_t last = last_lanes[(H - 1) % lanes];
      check(order.lanes_at(0) == (H > lanes ? lanes : last), where);
      check(order.lanes_at(H - 1) == last, where);
      check(order.columns() == 4 * (round_up(H, lanes) - lanes + last), where);
      check(GateOrder(gemm, H, true).columns() == 4 * round_up(H, lanes), where);
    }
  };
  check_order(2, 1, {1, 2});
  check_order(4, 1, {1, 2, 4, 4});
  check_order(8, 1, {2, 2, 4, 4, 8, 8, 8, 8});
  check_order(8, 2, {4, 4, 4, 4, 8, 8, 8, 8});
}

// Checks that the kernels have the settings that the machine `name` has.
void check_settings(const std::string& name, const GemmTable& kernels) {
  const auto settings_of = [](const GemmKernels& gemm) {
    return std::tuple(gemm.source_format, gemm.sum_dtype, gemm.element_bits, gemm.lanes,
                      gemm.relative_speed, gemm.tile_rows, gemm.bytes_ahead, gemm.l2_share,
                      gemm.min_rows_per_panel_load, gemm.min_encoded_rows_per_panel_load,
                      gemm.max_rows_in_place, gemm.few_rows_limit, gemm.encode != nullptr);
  };
  const CpuMachine machine = machines().at(name);
  for (const GemmKernels* const gemm : kernels.by_format)
    if (gemm)
      check(settings_of(*gemm) == settings_of(*machine.gemms[gemm->format]), name,
            ": the kernels for ", kFormatWords[int(gemm->format)], " have other settings");
}

void check_all_settings() {
#if defined(__x86_64__)
  check_settings("SSE2", baseline::table.gemms), check_settings("AVX2", avx2::table.gemms);
  check_settings("Intel with AVX-512", avx512::table.gemms);
  GemmTable gemms = avx512::table.gemms;
  gemms[Format::bfloat16] = &avx512_bf16::bfloat16_gemm;
  gemms[Format::int8] = &avx512_vnni::int8_gemm;
  check_settings("AMD with AVX-512", gemms);
  if (testing::tables().back().target != std::string("avx512")) return;
  const AmxGemms amx = amx_emulated::amx_gemms();
  gemms[Format::bfloat16x2] = &amx.bfloat16x2, gemms[Format::bfloat16] = &amx.bfloat16;
  gemms[Format::int8] = &amx.int8;
  check_settings("Intel with AMX", gemms);
#else
  check_settings("NEON", neon::table.gemms);
#endif
}

const bool added = [] {
  testing::Case("plans/gate_order", check_gate_order);
  testing::Case("plans/expected", check_expected_plans);
  testing::Case("plans/settings of the kernels", check_all_settings);
  for (const auto& [name, machine] : machines())
    testing::Case("plans/" + name, [=] { check_machine(name, machine); });
  return true;
}();

}  // namespace
