// Rows so long that every group of loads of every tile takes its turn, and waits: more blocks than
// the emulator has room for.
#include "persistent_run.h"

namespace {

using namespace persistent;

template <typename T>
void add(const char* kind, bool allow_tf32, double unit) {
  for (const auto& [units, row_tile] : compiled_tiles<T>(allow_tf32)) {
    // Of two groups of loads and a chunk; of many groups backward, whose rows are four times as
    // long.
    const bool ffma = std::is_same_v<T, float> && !allow_tf32;
    const int chunks = kWarps * (2 * chunks_in_flight(ffma, false, units, row_tile) + 1);
    Shape shape{2, 2, chunks * kChunkBytes / int(sizeof(T))};
    shape.units = units, shape.row_tile = row_tile;
    testing::Case(testing::text("deep/", kind, "/", units, "x", row_tile), [=] {
      simt::seed() = shape.units + shape.row_tile;
      Run<T> run(shape, 1, allow_tf32);
      run.forward();
      run.backward();
      run.compare(unit);
    });
  }
}

const bool added =
    (add<float>("float32", false, 0x1p-24), add<float>("tf32", true, 0x1p-11),
     add<bfloat16>("bfloat16", false, 0x1p-9), add<float16>("float16", false, 0x1p-11), true);

}  // namespace
