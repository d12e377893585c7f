// What each tile of the persistent engine asks of memory: bank conflicts in shared memory, sectors
// of global memory, and polls of the exchange in modelled time. "printed/counters" is the table of
// docs/cuda.md.
#include <cstdio>

#include "counters.h"
#include "persistent_run.h"

namespace {

using namespace persistent;
using counters::Counters;
using counters::kLoad;
using counters::kStore;
using counters::Total;
using testing::Case;
using testing::text;

// --- the counters themselves ---

template <int kWords>
struct alignas(4 * kWords) Element {
  uint32_t word[kWords];
};

// Every lane takes an element from shared memory to global memory, at `stride` times its number.
template <int kWords>
__global__ void copy_kernel(int stride, Element<kWords>* out) {
  auto* shared = reinterpret_cast<Element<kWords>*>(simt::self().block->shared.get());
  out[stride * threadIdx.x] = shared[stride * threadIdx.x];
}

template <int kWords>
void check_copy(int stride, int64_t conflicts, int64_t sectors) {
  std::vector<Element<kWords>> out(32 * 32);
  const size_t bytes = out.size() * sizeof out[0];
  Counters counters;
  counters.watch_shared("in", 0, bytes);
  counters.watch_global("out", out);
  Counters::current() = &counters;
  simt::launch(dim3(1), dim3(32), bytes, simt::kBlocksInTurn,
               [&] { copy_kernel(stride, out.data()); });
  Counters::current() = nullptr;
  counters.finish();
  const Total in = counters.total("in", kLoad), stored = counters.total("out", kStore);
  check(in.requests == 1 && stored.requests == 1, in.requests, " loads and ", stored.requests,
        " stores of a warp, expected one each");
  check(in.conflicts == conflicts && stored.sectors == sectors, kWords, " words, stride ", stride,
        ": ", in.conflicts, " conflicts, ", stored.sectors, " sectors");
}

const Case patterns("counters/known patterns", [] {
  check_copy<1>(0, 0, 1);
  check_copy<1>(1, 0, 4);
  check_copy<1>(2, 1, 8);
  check_copy<1>(12, 3, 32);
  check_copy<1>(32, 31, 32);
  check_copy<2>(0, 0, 1);
  check_copy<2>(1, 0, 8);
  check_copy<2>(2, 2, 16);  // one in each of two phases
  check_copy<4>(1, 0, 16);
  check_copy<4>(2, 4, 32);  // one in each of four
});

// --- the persistent engine ---

struct Tile {
  const char* kind;
  bool backward;
  int units, row_tile;

  std::string name() const {
    return text(kind, backward ? " backward " : " forward ", units, "x", row_tile);
  }
  bool ffma() const { return kind == std::string("float32"); }
  int bytes() const { return kind == std::string("bfloat16") ? 2 : 4; }
};

std::vector<Tile> all_tiles() {
  std::vector<Tile> tiles;
  for (const char* kind : {"bfloat16", "tf32", "float32"})
    for (bool backward : {false, true})
      for (int units : {8, 16, 32})
        for (int row_tile : {8, 16})
          if (Tile tile{kind, backward, units, row_tile}; is_compiled(tile.ffma(), units, row_tile))
            tiles.push_back(tile);
  return tiles;
}

struct Measured {
  Counters counters;
  simt::Clock clock;
  double polls() const { return double(clock.polls) / double(clock.pieces); }
  double unnoticed() const { return double(clock.unnoticed) / double(clock.pieces); }
};

// One launch; what backward takes from forward may be anything.
template <typename T>
Measured measure_dtype(const Tile& tile, int steps, int passes, int hidden) {
  Shape shape{steps, passes * tile.row_tile, hidden};
  shape.units = tile.units, shape.row_tile = tile.row_tile;
  Run<T> run(shape, 1, /*allow_tf32=*/!tile.ffma());
  run.task.backward = tile.backward;
  Measured measured;
  Counters& counters = measured.counters;
  const SharedLayout layout(run.task, run.tiling());
  size_t offset = 0;
  for (const auto& [name, bytes] : {std::pair{"slice", layout.weights},
                                    {"stage", layout.stage},
                                    {"sums", layout.partials},
                                    {"state", layout.state}}) {
    counters.watch_shared(name, offset, bytes);
    offset += bytes;
  }
  const auto& direction = run.buffers.direction[0];
  counters.watch_global("gates", direction.gates);
  counters.watch_global("cells", direction.cells);
  counters.watch_global("exchange", tile.backward ? direction.d_gates : run.buffers.output);
  simt::clock() = &measured.clock;
  Counters::current() = &counters;
  tile.backward ? run.backward() : run.forward();
  Counters::current() = nullptr;
  simt::clock() = nullptr;
  counters.finish();
  return measured;
}

Measured measure(const Tile& tile, int steps, int passes, int hidden) {
  return tile.bytes() == 2 ? measure_dtype<bfloat16>(tile, steps, passes, hidden)
                           : measure_dtype<float>(tile, steps, passes, hidden);
}

// Sectors of a warp's store of one value for each of its units and rows.
int store_sectors(const Tile& tile, int bytes) {
  return 32 / tile.units * ((tile.units * bytes + 31) / 32);
}

void check_tile(const Tile& tile) {
  const Measured one = measure(tile, 3, 1, 4 * tile.units);
  const auto conflicts = [&](const char* name, counters::Kind kind, double expected) {
    const Total total = one.counters.total(name, kind);
    check(total.requests > 0 && total.conflicts_each() == expected, tile.name(), ", ", name,
          kind == kLoad ? " loaded: " : " stored: ", total.conflicts_each(),
          " conflicts a request, expected ", expected);
  };
  const auto sectors = [&](const char* name, counters::Kind kind, int expected) {
    const Total total = one.counters.total(name, kind);
    check(total.requests > 0 && total.sectors_each() == expected, tile.name(), ", ", name,
          kind == kLoad ? " loaded: " : " stored: ", total.sectors_each(),
          " sectors a request, expected ", expected);
  };
  conflicts("slice", kLoad, 0);
  if (tile.ffma()) conflicts("stage", kLoad, 0);
  if (tile.ffma()) conflicts("stage", kStore, 0);
  conflicts("sums", kStore, 0);
  // Rows of sums that suit the stores of an mma lie badly for the loads of several short ones.
  conflicts("sums", kLoad, tile.backward && tile.units < 32 ? 1 : 0);
  conflicts("state", kLoad, 0);
  conflicts("state", kStore, 0);
  sectors("exchange", kLoad, 16);                                              // 8 rows of 64 bytes
  const int gates = kGatePairs && tile.backward && tile.bytes() == 2 ? 2 : 1;  // of a store
  sectors("exchange", kStore, gates * store_sectors(tile, tile.bytes()));
  sectors("gates", kLoad, store_sectors(tile, tile.bytes()));
  if (!tile.backward) sectors("gates", kStore, store_sectors(tile, tile.bytes()));
  sectors("cells", tile.backward ? kLoad : kStore, store_sectors(tile, 4));
  check(one.polls() <= 2, tile.name(), ": ", one.polls(), " polls a piece");
  if (tile.units > 8 || tile.row_tile > 8) return;
  const Measured two = measure(tile, 3, 2, 4 * tile.units);
  check(two.polls() == 1, tile.name(), ", two passes: ", two.polls(),
        " polls a piece, though it had the time of a pass to arrive");
}

const bool added = [] {
  for (const Tile& tile : all_tiles()) Case("counters/" + tile.name(), [=] { check_tile(tile); });
  return true;
}();

const Case table("printed/counters", [] {
  constexpr int kSteps = 4, kHidden = 128;
  std::printf("H %d; conflicts and sectors: mean of a request\n", kHidden);
  std::printf("%-26s|%26s|%27s|%21s\n", "", "conflicts", "sectors", "polls a piece, clocks");
  std::printf("%-26s|%6s%7s%6s%7s|%9s%9s%9s|%8s%8s%8s%8s\n", "tile", "slice", "stage", "sums<",
              "sums>", "exch <", "exch >", "gates", "1 pass", "idle", "clocks", "2 passes");
  for (const Tile& tile : all_tiles()) {
    const Measured one = measure(tile, kSteps, 1, kHidden), two = measure(tile, kSteps, 2, kHidden);
    const auto conflicts = [&](const char* name, counters::Kind kind) {
      return one.counters.total(name, kind).conflicts_each();
    };
    const auto sectors = [&](const char* name, counters::Kind kind) {
      return one.counters.total(name, kind).sectors_each();
    };
    std::printf("%-26s|%6.1f%7.1f%6.1f%7.1f|%9.1f%9.1f%9.1f|%8.2f%8.0f%8lld%8.2f\n",
                tile.name().c_str(), conflicts("slice", kLoad), conflicts("stage", kStore),
                conflicts("sums", kStore), conflicts("sums", kLoad), sectors("exchange", kLoad),
                sectors("exchange", kStore), sectors("gates", kLoad), one.polls(), one.unnoticed(),
                static_cast<long long>(one.clock.end / kSteps), two.polls());
  }
});

}  // namespace
