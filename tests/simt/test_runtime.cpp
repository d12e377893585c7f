// The host code of a launch (device.h), with a CUDA runtime that records its calls (runtime.h).
#include <chrono>
#include <future>

#include "device.h"
#include "harness.h"
#include "persistent_run.h"

namespace {

using testing::Case;
using testing::check;

// Two threads launch the same kernel with different amounts of shared memory. The thread with the
// larger amount sets the attribute of the kernel, then the other thread sets it, then the first
// thread launches. This launch must not fail.
const Case two_threads("runtime/two threads, one kernel, different shared memory", [] {
  persistent::Run<float> large({2, 2, 128}, 1, false), small({2, 2, 64}, 2, false);
  static thread_local bool is_larger = false;
  std::promise<void> large_is_set, small_is_set;
  const auto wait = [](std::promise<void>& event) {
    const auto status = event.get_future().wait_for(std::chrono::seconds(60));
    check(status == std::future_status::ready, "the other thread does not reach its launch");
  };
  runtime::state().on_attribute_set = [&] {
    (is_larger ? large_is_set : small_is_set).set_value();
    if (is_larger) wait(small_is_set);
  };
  auto other = std::async(std::launch::async, [&] {
    is_larger = true;
    large.forward();
  });
  wait(large_is_set);
  small.forward();
  other.get();
  runtime::state().on_attribute_set = nullptr;
  for (auto* run : {&large, &small}) {
    run->backward();
    run->compare();
  }
});

template <int kNumber>
__global__ void nothing_kernel(int) {}

template <typename Launch>
void check_error(Launch launch, int code, const char* what) {
  const int error = launch();
  check(error == code, what, ": error ", error, ", expected ", code);
  check(cudaPeekAtLastError() == cudaSuccess, what, ": CUDA still has the error");
}

const Case errors("runtime/an error is returned once", [] {
  const auto cooperative = [](unsigned blocks, size_t shared_bytes) {
    return fastlstm::launch_cooperative(nothing_kernel<0>, dim3(blocks), dim3(32), shared_bytes,
                                        nullptr, 0);
  };
  const int max_bytes = runtime::state().shared_bytes;
  check_error([&] { return cooperative(1, max_bytes); }, 0, "all shared memory");
  check_error([&] { return cooperative(1, max_bytes + 1); }, 1, "more than all shared memory");
  simt::resident_blocks() = 1;
  for (int code : {9, 701, 720, 800, 801}) {
    simt::refusal() = static_cast<cudaError_t>(code);
    check_error([&] { return cooperative(2, 0); }, code, "refused");
  }
  simt::resident_blocks() = 1024;
  simt::refusal() = cudaErrorCooperativeLaunchTooLarge;
  check_error(
      [&] { return fastlstm::launch(nothing_kernel<1>, dim3(1), dim3(2048), 0, nullptr, 0); }, 1,
      "too many threads");
  check_error(
      [&] { return fastlstm::launch(nothing_kernel<1>, dim3(1), dim3(32), 1 << 16, nullptr, 0); },
      1, "no attribute");
});

}  // namespace
