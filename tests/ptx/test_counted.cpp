// What each tile of the persistent engine does in a step: instructions of a warp, requests to
// memory, bank conflicts, looks at the exchange in modelled time. Prints a row for the table of
// counted.md.
#include <cstdio>

#include "persistent_run.h"

namespace {

using namespace persistent;
using ptx::Counted;
using ptx::Space;

struct Tile {
  const char *arithmetic, *direction;
  Dtype dtype;
  int units, rows;

  bool ffma() const { return arithmetic == std::string("Ffma"); }
  bool backward() const { return direction == std::string("backward"); }
  int bytes() const { return dtype == Dtype::kFloat32 ? 4 : 2; }
  std::string kernel() const {
    return testing::text(backward() ? "BackwardWalk<" : "ForwardWalk<", arithmetic, ", ", units,
                         ", ", rows, ">");
  }
};

const ptx::Kernel* kernel_of(const Tile& tile) {
  for (const ptx::Kernel* kernel : ptx::launched_kernels())
    if (kernel->short_name().find(tile.kernel()) != std::string::npos) return kernel;
  return nullptr;
}

// By instruction: how often it ran, and its requests.
struct Count {
  int64_t executed = 0;
  Counted memory;
};
std::vector<Count> counts_of(const Tile& tile) {
  std::vector<Count> counts;
  if (const ptx::Kernel* const kernel = kernel_of(tile))
    for (const auto& in : kernel->code) counts.push_back({int64_t(in.executed), in.counted});
  return counts;
}

// Of all warps in a launch of so many steps.
template <typename T>
std::vector<Count> counted_launch(const Tile& tile, int steps, int hidden) {
  Shape shape{steps, tile.rows, hidden};
  shape.units = tile.units, shape.row_tile = tile.rows;
  Run<T> run(shape, 1, /*allow_tf32=*/!tile.ffma());
  if (tile.backward()) run.forward();
  const auto before = counts_of(tile);
  // Not in the first step, whose row is there: two barriers before the steps, and two in each.
  ptx::options().looks_from = 4;
  ptx::options().clocked = ptx::options().ignore_races = true;  // other cases look for them
  tile.backward() ? run.backward() : run.forward();
  ptx::options().clocked = ptx::options().ignore_races = false;
  auto counts = counts_of(tile);
  for (size_t i = 0; i < before.size(); ++i) {
    Counted &to = counts[i].memory, from = before[i].memory;
    counts[i].executed -= before[i].executed;
    to.requests -= from.requests, to.lanes -= from.lanes;
    to.conflicts -= from.conflicts, to.sectors -= from.sectors;
  }
  return counts;
}

struct Total {
  double requests = 0, lanes = 0, conflicts = 0, sectors = 0;
  double conflicts_each() const { return requests ? conflicts / requests : 0; }
  double sectors_each() const { return requests ? sectors / requests : 0; }
};

template <typename T>
void check_tile(const Tile& tile) {
  constexpr int kHidden = 512, kSteps = 3, kMore = 4;
  const auto some = counted_launch<T>(tile, kSteps, kHidden);
  const auto more = counted_launch<T>(tile, kSteps + kMore, kHidden);
  const Task task{kHidden, tile.rows, 1, 1, tile.dtype, !tile.ffma(), tile.backward()};
  const double blocks = kHidden / tile.units, warps = blocks * kWarps * kMore;
  const ptx::Kernel& kernel = *kernel_of(tile);
  double instructions = 0;
  Total looks, published, global_loads, global_stores, shared_loads, shared_stores;
  for (size_t i = 0; i < kernel.code.size(); ++i) {
    const ptx::Access& access = kernel.code[i].access;
    instructions += double(more[i].executed - some[i].executed) / warps;
    const Counted &a = some[i].memory, &b = more[i].memory;
    if (b.requests == 0 || access.space == Space::kParam) continue;
    const bool load = kernel.code[i].latency > 0, global = access.space == Space::kGlobal;
    Total& total = access.strong ? (load ? looks : published)
                   : global      ? (load ? global_loads : global_stores)
                                 : (load ? shared_loads : shared_stores);
    total.requests += double(b.requests - a.requests) / warps;
    total.lanes += double(b.lanes - a.lanes) / warps;
    total.sectors += double(b.sectors - a.sectors) / warps;
    const double conflicts = double(b.conflicts - a.conflicts) / warps;
    total.conflicts += conflicts;
    // Rows of sums that suit the stores of an mma lie badly for the loads of several short ones.
    const bool sums = load && tile.backward() && tile.units < 32 && access.bytes == 4;
    check(global || conflicts <= (sums ? double(b.requests - a.requests) / warps : 0), conflicts,
          " bank conflicts at ", kernel.code[i].text);
  }
  // Of 8 rows and 64 bytes; one that is repeated may be of less.
  check(looks.sectors_each() > 15 && looks.sectors_each() <= 16, "a look takes ",
        looks.sectors_each(), " sectors");
  // A value of each unit and row.
  const int sectors = 32 / tile.units * ((tile.units * tile.bytes() + 31) / 32);
  check(published.sectors_each() == sectors, "a publication takes ", published.sectors_each(),
        " sectors, expected ", sectors);
  const auto in_flight =
      size_t(tile.rows / 8) *
      std::min<size_t>(chunks_in_flight(tile.ffma(), tile.backward(), tile.units, tile.rows),
                       task.chunks() / kWarps);
  check(kernel.most_looks == in_flight, kernel.most_looks, " looks in flight, the planner has ",
        in_flight);
  const double pieces = double(task.chunks()) * 4 * tile.rows / kWarps;
  const double looks_each = looks.lanes / pieces;
  check(looks_each >= 1 && looks_each < 3, looks_each, " looks at a piece");
  std::printf("| %s | %s | %dx%d | %.0f | %.0f | %zu | %.2f | %.0f | %.1f | %.0f | %.1f | %.0f |\n",
              tile.arithmetic, tile.direction, tile.units, tile.rows, instructions, looks.requests,
              kernel.most_looks, looks_each, global_loads.requests + global_stores.requests,
              (global_loads.sectors + global_stores.sectors) /
                  (global_loads.requests + global_stores.requests),
              shared_loads.requests + shared_stores.requests, published.requests,
              shared_loads.conflicts);
}

template <typename T>
void add(const char* arithmetic, Dtype dtype) {
  for (const char* const direction : {"forward", "backward"})
    for (const auto& [units, rows] : compiled_tiles<T>(arithmetic != std::string("Ffma"))) {
      const Tile tile{arithmetic, direction, dtype, units, rows};
      testing::Case("counted/" + tile.kernel(), [=] { check_tile<T>(tile); });
    }
}
const bool added =
    (add<bfloat16>("BFloat16Mma", Dtype::kBFloat16), add<float>("Tf32Mma", Dtype::kFloat32),
     add<float>("Ffma", Dtype::kFloat32), true);

}  // namespace
