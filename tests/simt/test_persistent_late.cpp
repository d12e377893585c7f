// The persistent engine when one block starts late: the other blocks must wait for its start longer
// than they wait for a value of a block that runs.
#include "persistent_run.h"

namespace {

using namespace persistent;

const testing::Case late("persistent/a block that starts late", [] {
  for (bool allow_tf32 : {true, false}) {
    for (const Shape& shape : {Shape{3, 2, 64}, Shape{4, 3, 64, kLengths, 1, true}}) {
      Run<float> run(shape, 1, allow_tf32);
      for (const auto& pass : {std::function<void()>([&] { run.forward(); }),
                               std::function<void()>([&] { run.backward(); })}) {
        simt::late_polls() = 2000 * FASTLSTM_SPIN_LIMIT;
        pass();
        check(simt::late_polls() == 0, simt::late_polls(), " polls before the last block started");
      }
      run.compare(allow_tf32 ? 0x1p-11 : 0x1p-24);
    }
  }
});

}  // namespace
