// The persistent engine when one block starts late: the other blocks wait for their first value 20
// times as long as for later values, so that the late block can start.
#include "persistent_run.h"

namespace {

using namespace persistent;

const testing::Case late("persistent/a block that starts late", [] {
  constexpr uint32_t kWaitLimit = 50'000;
  for (bool allow_tf32 : {true, false}) {
    for (const Shape& shape : {Shape{3, 2, 64}, Shape{4, 3, 64, kLengths, 1, true}}) {
      Run<float> run(shape, 1, allow_tf32);
      run.wait_limit = kWaitLimit;
      for (const auto& pass : {std::function<void()>([&] { run.forward(); }),
                               std::function<void()>([&] { run.backward(); })}) {
        simt::late_polls() = 10 * kWaitLimit;
        pass();
        check(simt::late_polls() == 0, "the late block began ", simt::late_polls(), " polls early");
      }
      run.compare();
    }
  }
});

const testing::Case too_late("persistent/a block that starts too late", [] {
  Run<float> run({3, 2, 64}, 1, true);
  run.wait_limit = 50'000;
  simt::late_polls() = 30 * run.wait_limit;
  std::string message;
  try {
    run.forward();
  } catch (const simt::Fault& fault) {
    message = fault.what();
  }
  const int left = std::exchange(simt::late_polls(), 0);
  check(message == "a block waits in vain", "expected a fault, got \"", message, '"');
  const uint32_t polls = 30 * run.wait_limit - left;
  check(polls >= 19 * run.wait_limit && polls <= 21 * run.wait_limit, "gave up after ", polls);
});

}  // namespace
