// The persistent engine, for every tile, with two shapes that are too large for the emulator of
// tests/simt: rows so long that each warp loads its chunks (kChunkBytes) in several groups, and so
// many rows that each thread of a block has several rows.
#include "persistent_run.h"

namespace {

using namespace persistent;

template <typename T>
void add(bool allow_tf32) {
  const char* const kind = allow_tf32 ? "tf32" : name_of<T>();
  for (const auto& [units, row_tile] : compiled_tiles<T>(allow_tf32)) {
    // In forward each warp loads two full groups of chunks of a row and one chunk more. In backward
    // rows are four times as long, so each warp loads many groups.
    const bool ffma = std::is_same_v<T, float> && !allow_tf32;
    const int chunks = kWarps * (2 * chunks_in_flight(ffma, false, units, row_tile) + 1);
    Shape of_long_rows{2, row_tile, chunks * kChunkBytes / int(sizeof(T)) - 3};
    Shape of_many_rows{4, 4 * kThreads + 9, 2 * units - 3, kLengths};
    of_many_rows.reset = of_many_rows.has_order = true;
    for (Shape shape : {of_long_rows, of_many_rows}) {
      shape.units = units, shape.row_tile = row_tile;
      const char* const name = shape.B > row_tile ? " many rows" : "";
      testing::Case(testing::text("deep/persistent/", kind, "/", units, "x", row_tile, name), [=] {
        simt::seed() = shape.units + shape.row_tile;
        Run<T>(shape, 1, allow_tf32).check_both();
      });
    }
  }
}

const bool added =
    (add<float>(false), add<float>(true), add<bfloat16>(false), add<float16>(false), true);

}  // namespace
