// The persistent engine, for every tile, with two shapes that are too large for the emulator of
// tests/simt: rows so long that each warp loads its chunks (kChunkBytes) in several groups, and so
// many rows that each thread of a block has several rows. A block waits in vain.
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

// A launch ends if the value of a missing block does not come within wait_limit milliseconds, or
// within 20 times as many if it is the first value that a block waits for.
const testing::Case vain("persistent/a value that never comes", [] {
  for (const bool is_first : {true, false}) {
    Run<float> run({3, 1, 16}, 1, false);
    if (!is_first) std::fill_n(&run.buffers.output[8], 8, 0.5f);  // the missing values of step 0
    run.wait_limit = 3, run.missing_blocks = 1;
    ptx::options().nanoseconds = uint64_t{100} << 20;
    std::string waited = "no end";
    try {
      run.forward();
    } catch (const ptx::Fault&) {
      waited = text((ptx::options().nanoseconds >> 20) - 100);
    }
    check(waited == (is_first ? "61" : "4"), "waited ", waited, " milliseconds");
  }
});

const bool added =
    (add<float>(false), add<float>(true), add<bfloat16>(false), add<float16>(false), true);

}  // namespace
