// What a warp has asked the exchange for when it begins to wait, against what the planner thinks.
#include "../../../csrc/cuda/persistent_block.h"
#include "counters.h"
#include "harness.h"

namespace {

using namespace fastlstm;
using counters::Counters;
using testing::Case;
using testing::check;
using testing::unwritten;

// A block multiplies rows that nobody has written.
template <class P, bool kBackward, int kUnits, int kTile>
__global__ void wait_kernel(Sequence sequence, Tiling tiling,
                            const std::vector<typename P::T>& row) {
  const Block<P, matrix_rows(kBackward, kUnits), kUnits, kTile> block(
      sequence, tiling, false, kBackward ? 4 : 1, /*aligned=*/true);
  block.multiply(0, 0, [&](int) { return RowVector<typename P::T>{row.data(), true}; });
}

template <class P, bool kBackward, int kUnits, int kTile>
void check_tile(Dtype dtype) {
  constexpr bool kFfma = std::is_same<P, Ffma>::value;
  if constexpr (is_compiled(kFfma, kUnits, kTile)) {
    const Task task{2048, kTile, 1, 1, dtype, !kFfma, false, kBackward};
    const Tiling tiling = make_tiling(task, kUnits, kTile, 1, 1);
    const auto row = unwritten<typename P::T>(task.depth());
    Sequence sequence{};
    sequence.steps = 1, sequence.batch = kTile, sequence.hidden_size = 2048;
    Counters counters;
    counters.watch_global("row", row);
    Counters::current() = &counters;
    bool waits = false;  // for ever, and nobody polls again before something is there
    try {
      simt::launch(dim3(1), dim3(kThreads), SharedLayout(task, tiling).total(), simt::kAllBlocks,
                   [&] { wait_kernel<P, kBackward, kUnits, kTile>(sequence, tiling, row); });
    } catch (const simt::Fault&) {
      waits = true;
    }
    Counters::current() = nullptr;
    counters.finish();
    const int64_t expected = kTile / 8 * chunks_in_flight(kFfma, kBackward, kUnits, kTile);
    const int64_t loads = counters.total("row", counters::kLoad).requests / kWarps;
    check(waits && loads == expected, kUnits, "x", kTile,
          kBackward ? " backward: " : " forward: ", loads,
          " chunks of 8 rows in flight, the planner has ", expected);
  }
}

template <class P, bool kBackward, int kUnits>
void check_units(Dtype dtype) {
  check_tile<P, kBackward, kUnits, 8>(dtype);
  check_tile<P, kBackward, kUnits, 16>(dtype);
}

template <class P>
void check_product(Dtype dtype) {
  check_units<P, false, 8>(dtype), check_units<P, true, 8>(dtype);
  check_units<P, false, 16>(dtype), check_units<P, true, 16>(dtype);
  check_units<P, false, 32>(dtype), check_units<P, true, 32>(dtype);
}

const Case in_flight("counters/chunks in flight are the planner's", [] {
  check_product<BFloat16Mma>(Dtype::kBFloat16);
  check_product<Tf32Mma>(Dtype::kFloat32);
  check_product<Ffma>(Dtype::kFloat32);
});

}  // namespace
