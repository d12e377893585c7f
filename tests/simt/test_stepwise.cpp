// The CUDA kernels of the stepwise engine against the oracle.
#include <runtime.h>

#include "../../csrc/cuda/launch.h"
#include "stepwise_run.h"

namespace {

using namespace stepwise;

const auto launch = [](auto& step) { check(launch_step(step, nullptr) == cudaSuccess, "launch"); };

// One step with a projection. Rows: ordinary, reset before the next step, dead, at its last step.
template <typename T, typename A>
void run_projected(int64_t P) {
  constexpr int64_t B = 4, kReset = 1, kDead = 2, kLast = 3;
  std::mt19937 random(1);
  std::normal_distribution<double> normal;
  const auto draw = [&](int64_t n) {
    oracle::Values values(n);
    for (double& v : values) v = to_double(from_double<T>(normal(random)));
    return values;
  };
  const oracle::Values projected = draw(B * P), h_before = draw(B * P), mask = draw(B * P);
  const oracle::Values d_output = draw(B * P), dh = draw(B * P);
  oracle::Values output, h, masked, d_projected, dh_after;
  for (int64_t i = 0; i < B * P; ++i) {
    const int64_t b = i / P;
    output.push_back(b == kDead ? 0 : projected[i]);
    h.push_back(b == kDead ? h_before[i] : projected[i]);
    masked.push_back(b == kDead ? h_before[i] : projected[i] * mask[i]);
    const double factor = b == kReset ? 0 : b == kLast ? 1 : mask[i];
    d_projected.push_back(b == kDead ? 0 : factor * dh[i] + d_output[i]);
    dh_after.push_back(b == kDead ? dh[i] : 0);
  }
  // Vectors, not arrays: in tests/gpu kernels can read only memory from operator new.
  const std::vector<char> reset = {false, true, false, true};
  const std::vector<int64_t> lengths = {3, 3, 1, 2};
  Step common{};
  common.t = 1, common.rows = B, common.hidden_size = P, common.lengths = lengths.data();
  const auto mask_T = converted<T>(mask), projected_T = converted<T>(projected);
  const auto d_output_T = converted<T>(d_output);

  auto h_state = converted<T>(h_before), h_masked = h_state, output_T = unwritten<T>(B * P);
  ProjectionForwardStep<T, A> forward{};
  static_cast<Step&>(forward) = common;
  forward.projected = projected_T.data(), forward.h_state = h_state.data();
  forward.h_mask = mask_T.data(), forward.h_masked = h_masked.data();
  forward.output = output_T.data(), forward.output_stride = P;
  launch(forward);
  check_close(output_T, output, roundoff<T>(), 0, "output");
  check_close(h_state, h, roundoff<T>(), 0, "h");
  check_close(h_masked, masked, roundoff<T>(), 2, "h_masked");

  auto dh_state = converted<T>(dh), d_projected_T = unwritten<T>(B * P);
  ProjectionBackwardStep<T, A> backward{};
  static_cast<Step&>(backward) = common;
  backward.dh_state = dh_state.data(), backward.h_mask = mask_T.data();
  backward.rows_after = B, backward.reset_after = reinterpret_cast<const bool*>(reset.data());
  backward.d_output = d_output_T.data(), backward.d_output_stride = P;
  backward.d_projected = d_projected_T.data();
  launch(backward);
  check_close(d_projected_T, d_projected, roundoff<T>(), 4, "d_projected");
  check_close(dh_state, dh_after, roundoff<T>(), 0, "dh");
}

template <typename T, typename A>
void add_cases() {
  const std::string prefix = std::string("stepwise/") + name_of<T>() + "/";
  const auto add = [&](const std::string& name, Shape shape) {
    Case(prefix + name, [shape] {
      for (simt::seed() = 1; simt::seed() <= 2; ++simt::seed())
        run<T, A>(shape, simt::seed(), launch);
    });
  };
  add("one unit", {3, 1, 1});
  add("odd sizes", {5, 3, 37});
  add("only step", {1, 3, 37, kDense, false, true});
  add("wider than a block", {2, 2, 300});
  add("reverse", {5, 3, 8, kDense, true});
  add("nothing saved", {5, 3, 8, kDense, false, false, false});
  add("packed", {6, 5, 9, kPacked});
  add("packed reverse", {6, 5, 9, kPacked, true});
  add("lengths", {6, 7, 9, kLengths});
  add("lengths reverse", {6, 7, 9, kLengths, true});
  add("reset", {6, 5, 9, kDense, false, true});
  add("reset, lengths, reverse", {6, 7, 9, kLengths, true, true});
  add("recurrent dropout", {5, 3, 8, kDense, false, true, true, true});
  add("recurrent dropout, packed reverse", {6, 5, 9, kPacked, true, false, true, true});
  add("recurrent dropout, lengths", {6, 7, 9, kLengths, false, true, true, true});
  add("recurrent dropout, lengths, reverse", {6, 7, 9, kLengths, true, true, true, true});
  Case(prefix + "projection", [] { run_projected<T, A>(9); });
}
const bool added = (add_cases<double, double>(), add_cases<float, float>(),
                    add_cases<bfloat16, float>(), add_cases<float16, float>(), true);

// If a grid cannot have a thread for each row, a thread computes several rows.
const Case many_rows("stepwise/more rows than a grid has threads", [] {
  const int64_t rows = 1024 * 8 + 3, H = 1;
  const std::vector<float> x_gates(rows * 4, 0.0f), h_gates(rows * 4, 0.0f);
  std::vector<float> c_state(rows, 2.0f), h_state = unwritten<float>(rows);
  std::vector<float> gates(rows * 4);
  ForwardStep<float, float> step{};
  step.rows = rows, step.hidden_size = H;
  step.x_gates = x_gates.data(), step.h_gates = h_gates.data(), step.gates = gates.data();
  step.c_state = step.cells = c_state.data();
  step.h_state = step.output = h_state.data(), step.output_stride = 1;
  launch(step);
  check_close(c_state, oracle::Values(rows, 1.0), 0x1p-24, 4, "c");  // sigmoid(0) * 2
  check_close(h_state, oracle::Values(rows, 0.5 * std::tanh(1.0)), 0x1p-24, 4, "h");
});

}  // namespace
