// The host code of a launch (device.h), with a CUDA runtime that records its calls (runtime.h), and
// a block that starts late.
#include <chrono>
#include <future>

#include "../../csrc/cuda/launch.h"
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

const Case grids("runtime/blocks and shared memory of a launch", [] {
  std::vector<double> memory(8193 * 4);
  std::vector<int64_t> zeros(8193);
  std::string found;
  const auto add = [&](const char* what, cudaError_t error) {
    check(error == cudaSuccess, what, ": error ", error);
    found += what;
    for (const runtime::Event& e : std::exchange(runtime::state().events, {}))
      found += testing::text(' ', e.blocks, 'x', e.bytes);
  };
  // All rows are dead, so that the kernels need no other memory.
  const auto add_step = [&](const char* what, auto step, int64_t rows, int64_t hidden_size) {
    step.rows = rows, step.hidden_size = step.output_stride = hidden_size;
    step.lengths = zeros.data();
    step.output = step.cells = step.c_state = step.gates = memory.data();
    add(what, fastlstm::launch_step(step, nullptr));
  };
  using Forward = fastlstm::ForwardStep<double, double>;
  runtime::state().events.clear();
  for (const auto& [rows, hidden_size] : std::map<int64_t, int64_t>{
           {0, 5}, {1, 1}, {2, 300}, {5, 0}, {8, 32}, {9, 33}, {8 * 1024 + 1, 1}})
    add_step(" step", Forward{}, rows, hidden_size);
  add_step(" norm", fastlstm::NormForwardStep<double, double>{}, 3, 5);
  for (int64_t count : {0, 1, 510, 511})
    add(" upload", fastlstm::launch_upload(zeros.data(), count, &zeros[1000], nullptr));
  const std::string expected =
      " step step 1x0 step 4x0 step step 1x0 step 3x0 step 1024x0 norm 3x64"
      " upload upload 1x0 upload 1x0 upload 1x0 1x0";
  check(found == expected, "found", found, ", expected", expected);
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
  const auto cooperative = [](size_t shared_bytes) {
    return fastlstm::launch_cooperative(nothing_kernel<0>, 1, 32, shared_bytes, nullptr, 0);
  };
  const int max_bytes = runtime::state().shared_bytes;
  check_error([&] { return cooperative(max_bytes); }, 0, "all shared memory");
  check_error([&] { return cooperative(max_bytes + 1); }, 1, "more than all shared memory");
  const auto ordinary = [](unsigned threads, size_t shared_bytes) {
    return fastlstm::launch(nothing_kernel<1>, 1, threads, shared_bytes, nullptr, 0);
  };
  check_error([&] { return ordinary(2048, 0); }, 1, "too many threads");
  check_error([&] { return ordinary(32, 1 << 16); }, 1, "no attribute");
});

// The other blocks wait for their first value 20 times as long as for later values, so that a late
// block can start.
const Case late("persistent/a block that starts late", [] {
  constexpr uint32_t kWaitLimit = 50'000;
  for (bool allow_tf32 : {true, false}) {
    for (const auto& shape :
         {persistent::Shape{3, 2, 64}, persistent::Shape{4, 3, 64, oracle::kLengths, 1, true}}) {
      persistent::Run<float> run(shape, 1, allow_tf32);
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

}  // namespace
