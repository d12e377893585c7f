// The planner on machines that are not this one: what holds for every plan, and what each of them
// is known to take.
#include <initializer_list>

#include "../simt/harness.h"
#include "cpu/plan.h"

namespace {

using namespace fastlstm;
using testing::check;

// A product as planners see it: it is never run.
Product product_of(Format format, int64_t bytes, int64_t lanes, int64_t rows, bool trains = true) {
  Product product{};
  product.format = product.given = format, product.bits = 8 * bytes, product.lanes = lanes;
  product.sums = format == Format::float64 ? Dtype::kFloat64 : Dtype::kFloat32;
  product.rows = rows, product.vectors = 4, product.rate = 4.0 / bytes;
  if (format != Format::float32 && format != Format::float64)
    product.encode = [](const void*, int64_t, void*) {};
  if (trains) product.transpose = [](const void* const*, int64_t, int64_t, int64_t, void*) {};
  return product;
}

struct Named {
  const char* name;
  CpuMachine machine;
};

std::vector<Named> machines() {
  static const auto own = [](int64_t lanes, int64_t rows, bool trains_bfloat16) {
    const auto* const all =
        new Product[]{product_of(Format::float32, 4, lanes, rows),
                      product_of(Format::float64, 8, lanes / 2, rows),
                      product_of(Format::bfloat16, 2, lanes, rows, trains_bfloat16),
                      product_of(Format::int8, 1, lanes, 4, false)};
    return Products{{all, all + 1, all + 2, all + 3}};
  };
  static const Products avx512 = own(16, 6, false), avx512_bf16 = own(16, 6, true),
                        avx2 = own(8, 6, false), neon = own(4, 5, true), sse = own(4, 2, false);
  static const Products amx = [] {
    static Product tiles = *avx512_bf16[Format::bfloat16];
    tiles.rows = 64, tiles.panel_rows = 128, tiles.bytes_ahead = 256 << 10;
    static Product split = product_of(Format::bfloat16x3, 6, 16, 64);
    split.given = Format::float32, split.rate = 2, split.bytes_ahead = 0;
    split.rows_worth_it = 24, split.ragged_rows_worth_it = 144, split.units_worth_it = 256,
    split.cells_worth_it = 1 << 14;
    static Product two_planes = split;
    two_planes.format = Format::bfloat16x2, two_planes.bits = 32, two_planes.rate = 3.5;
    two_planes.rows_worth_it = two_planes.ragged_rows_worth_it = 8, two_planes.units_worth_it = 128;
    two_planes.cells_worth_it = 1 << 11;
    Products products = avx512_bf16;
    products[Format::bfloat16] = &tiles, products[Format::bfloat16x3] = &split;
    products[Format::bfloat16x2] = &two_planes;
    return products;
  }();
  return {{"Intel with AMX", {1, 2 << 20, amx, true, kIntel}},
          {"Intel with AVX-512", {1, 1 << 20, avx512, true, kIntel}},
          {"AMD with AVX-512", {1, 1 << 20, avx512_bf16, true, kAvx512}},
          {"AVX2", {1, 512 << 10, avx2, true, {}}},
          {"NEON", {1, 1 << 20, neon, true, {}}},
          {"SSE2", {1, 256 << 10, sse, false, {}}}};
}

std::string text_of(const char* name, const CpuTask& task, const CpuMachine& machine) {
  return testing::text(name, ", ", machine.threads, " threads, dtype ", int(task.dtype), ", T ",
                       task.steps, ", B ", task.batch, ", I ", task.input_size, ", H ",
                       task.hidden_size, ", directions ", task.directions, ", saves ", task.saves,
                       ", backward ", task.backward, ", projects ", task.projects, ", weights ",
                       task.packed_weights ? int(*task.packed_weights) : -1);
}

// Whether rows of a dtype come to a product: as they are, encoded, or of 16 bits widened.
bool can_take(const Product& product, Dtype dtype) {
  if (product.takes(dtype)) return true;
  if (dtype == Dtype::kFloat64 || product.sums == Dtype::kFloat64) return false;
  return bytes_of(dtype) == 2 ? product.format == Format::float32 : product.encode != nullptr;
}

// What every walk relies on.
void check_plan(const std::string& what, const CpuTask& task, const CpuMachine& machine) {
  const CpuPlan found = plan(task, machine);
  check(found.dtype == task.dtype || (bytes_of(task.dtype) == 2 && found.dtype == Dtype::kFloat32),
        what, ": converted to ", int(found.dtype));
  if (found.engine == CpuEngine::kStepwise) {
    check(!found.product, what, ": a product that the stepwise engine has not");
    return;
  }
  const ThreadGrid& grid = found.grid;
  const Product& product = *found.product;
  check(grid.threads() >= 1 && grid.threads() <= machine.threads && grid.row_groups <= task.batch &&
            grid.unit_groups <= (task.hidden_size + product.lanes - 1) / product.lanes &&
            grid.directions <= task.directions,
        what, ": a grid of ", grid.unit_groups, "x", grid.row_groups, "x", grid.directions);
  check(can_take(product, found.dtype), what, ": rows of ", int(found.dtype), " for ",
        int(product.format));
  // Its walk has rows in the dtype of the state only.
  check(!task.projects || bytes_of(found.dtype) > 2, what, ": a projection in 16 bits");
  if (task.packed_weights)
    check(product.format == *task.packed_weights ||
              (product.given == *task.packed_weights && !product.takes(Dtype::kFloat32)),
          what, ": another product than that of the weights");
  if (task.backward || found.one_step) check(product.trains(), what, ": no product to train with");
  if (found.one_step)
    check(product.takes(found.dtype) && task.steps == 1 && !task.packed_weights, what,
          ": weights that do not lie as they are multiplied");
  check(found.steps_ahead >= 0 && found.steps_ahead <= task.steps && found.chunk_steps >= 1 &&
            found.chunk_steps <= task.steps,
        what, ": ", found.steps_ahead, " steps ahead, chunks of ", found.chunk_steps);
  check(found.step_row_groups >= 1 && found.step_row_groups <= machine.threads, what, ": ",
        found.step_row_groups, " row groups of a step");
}

// body(task) for calls of many kinds.
void for_tasks(const auto& body) {
  for (const Dtype dtype : {Dtype::kFloat64, Dtype::kFloat32, Dtype::kBFloat16, Dtype::kFloat16})
    for (const int64_t steps : {1, 2, 100})
      for (const int64_t batch : {1, 5, 64, 300})
        for (const int64_t hidden : {1, 37, 256, 1024})
          for (const int kind : {0, 1, 2})
            for (const int options : {0, 1, 2, 4, 7}) {
              CpuTask task{dtype};
              task.steps = steps, task.batch = batch, task.rows = steps * batch;
              task.input_size = 40, task.hidden_size = task.output_size = hidden;
              task.saves = kind == 1, task.backward = kind == 2;
              task.projects = options & 1, task.directions = options & 2 ? 2 : 1;
              task.precision = options & 4 ? Precision::kBf16 : Precision::kNone;
              if (task.projects) task.output_size = 1 + hidden / 2;
              body(task);
            }
}

void for_packed_tasks(const auto& body) {
  for_tasks([&](CpuTask task) {
    if (task.saves || task.backward) return;
    for (const Format format : {Format::float32, Format::float64, Format::bfloat16, Format::int8}) {
      if ((format == Format::float64) != (task.dtype == Dtype::kFloat64)) continue;
      task.packed_weights = format;
      body(task);
    }
  });
}

void check_machine(const Named& of) {
  CpuMachine machine = of.machine;
  const auto check_one = [&](const CpuTask& task) {
    for (const int64_t threads : {1, 2, 3, 16, 128}) {
      machine.threads = threads;
      check_plan(text_of(of.name, task, machine), task, machine);
    }
  };
  for_tasks(check_one);
  for_packed_tasks(check_one);
}

// More threads never make the predicted time longer.
void check_threads(const Named& of) {
  for_tasks([&](const CpuTask& task) {
    CpuMachine machine = of.machine;
    double before = 1e300;
    for (machine.threads = 1; machine.threads <= 128; machine.threads *= 2) {
      const CpuPlan found = plan(task, machine);
      if (found.engine == CpuEngine::kStepwise) return;
      check(found.step_us <= before, text_of(of.name, task, machine), ": ", found.step_us,
            " us, with half of the threads ", before);
      before = found.step_us;
    }
  });
}

// float32 as sums of bfloat16: where it was measured ahead, and nowhere else.
void check_split(const Named& of) {
  CpuTask task{Dtype::kFloat32};
  task.steps = 20, task.batch = 64, task.rows = 20 * 64;
  task.input_size = task.hidden_size = task.output_size = 256;
  const auto splits = [&](const CpuTask& task) {
    const CpuPlan found = plan(task, of.machine);
    return found.product && found.product->format == Format::bfloat16x3;
  };
  check(splits(task) == (of.machine.products[Format::bfloat16x3] != nullptr), of.name);
  const auto takes = [&](const auto& change) {
    CpuTask other = task;
    change(other);
    return splits(other);
  };
  const auto refuses = [&](const char* why, const auto& change) {
    check(!takes(change), of.name, ": ", why);
  };
  check(takes([](CpuTask& t) { t.projects = true, t.output_size = 64; }) == splits(task), of.name,
        ": a projection");
  check(takes([](CpuTask& t) { t.packed_weights = Format::float32; }) == splits(task), of.name,
        ": weights packed as float32");
  refuses("float64", [](CpuTask& t) { t.dtype = Dtype::kFloat64; });
  if (splits(task)) {
    CpuTask with_tf32 = task;
    with_tf32.precision = Precision::kTf32;
    check(plan(with_tf32, of.machine).product->format == Format::bfloat16x2, of.name, ": tf32");
    with_tf32.rows = 20 * 10, with_tf32.saves = true;
    check(plan(with_tf32, of.machine).product->format == Format::bfloat16x2, of.name,
          ": ragged training of few rows by tf32");
  }
  refuses("ieee", [](CpuTask& t) { t.precision = Precision::kIeee; });
  refuses("bf16", [](CpuTask& t) { t.precision = Precision::kBf16; });
  refuses("an engine by name", [](CpuTask& t) { t.engine = "tiled"; });
  refuses("weights packed as int8", [](CpuTask& t) { t.packed_weights = Format::int8; });
  refuses("a single step", [](CpuTask& t) { t.steps = 1, t.rows = t.batch; });
  refuses("few rows", [](CpuTask& t) { t.rows = 20 * 23, t.hidden_size = t.output_size = 900; });
  refuses("two steps of few rows", [](CpuTask& t) { t.steps = 2, t.batch = 63, t.rows = 126; });
  refuses("few rows of weights packed as float32",
          [](CpuTask& t) { t.packed_weights = Format::float32, t.steps = 5, t.rows = 5 * 64; });
  refuses("few cells", [](CpuTask& t) { t.rows = 20 * 63; });
  refuses("few units", [](CpuTask& t) { t.hidden_size = t.output_size = 255; });
  const auto ragged = [](int64_t rows, bool saves) {
    return [=](CpuTask& t) { t.batch = 256, t.rows = 20 * rows, t.saves = saves; };
  };
  check(takes(ragged(64, false)) == splits(task), of.name, ": ragged inference");
  check(takes(ragged(144, true)) == splits(task), of.name, ": ragged training");
  refuses("ragged training of few rows", ragged(143, true));
}

const bool added = [] {
  for (const Named& of : machines()) {
    testing::Case(std::string("plans/") + of.name, [of] {
      check_machine(of);
      check_threads(of);
      check_split(of);
    });
  }
  testing::Case("plans/grids by name", [] {
    CpuTask task{Dtype::kFloat32};
    task.steps = 10, task.batch = 64, task.rows = 640, task.hidden_size = task.output_size = 512;
    CpuMachine machine = machines()[2].machine;
    machine.threads = 8;
    task.engine = "tiled:2x4x1";
    check(plan(task, machine).grid == ThreadGrid{2, 4, 1}, "2x4x1");
    task.engine = "tiled:64x1x1";  // more than there are threads: the planner's own
    check(plan(task, machine).grid.threads() <= 8, "64x1x1");
    check(!is_cpu_engine("tiled:0x1x1", false) && !is_cpu_engine("tiled", true), "names");
  });
  return true;
}();

}  // namespace
