// The CUDA kernels of the stepwise engine against the oracle. Plain loops over the time steps and
// plain matrix products replace the code of csrc/stepwise, which uses ATen.
#include <runtime.h>

#include <algorithm>

#include "../../csrc/cuda/launch.h"
#include "harness.h"
#include "oracle.h"

namespace {

using namespace fastlstm;
using namespace testing;

// Returns out[rows,n] = a[rows,k] b[k,n], rounded to T as by a GEMM of that dtype. With
// `transposed_b`, b is stored as [n,k].
template <typename T>
std::vector<T> gemm(const T* a, const T* b, int64_t rows, int64_t k, int64_t n, bool transposed_b) {
  std::vector<T> out(rows * n);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < n; ++c) {
      double sum = 0;
      for (int64_t i = 0; i < k; ++i)
        sum += to_double(a[r * k + i]) * to_double(transposed_b ? b[c * k + i] : b[i * n + c]);
      out[r * n + c] = from_double<T>(sum);
    }
  return out;
}

using oracle::kDense, oracle::kLengths, oracle::kPacked;

struct Shape {
  int64_t T, B, H;
  oracle::Form form;
  bool reverse, reset, save;
  bool masks = false;
};

// Runs forward and backward with states in the dtype A, and compares all results with the oracle.
template <typename T, typename A>
void run(const Shape& shape, unsigned seed) {
  const int64_t B = shape.B, H = shape.H, steps = shape.T;
  const auto problem =
      oracle::random_problem(steps, B, H, {shape.form, shape.reverse, shape.reset, shape.masks},
                             seed, [](double x) { return to_double(from_double<T>(x)); });
  auto x_gates = converted<T>(problem.x_gates);
  const oracle::Solution solution = oracle::solve(problem);

  std::vector<int64_t> rows(steps), order(steps);
  for (int64_t n = 0; n < steps; ++n)
    rows[n] = problem.rows(n), order[n] = shape.reverse ? steps - 1 - n : n;

  const auto w_hh = converted<T>(problem.w_hh);
  const auto h_0 = converted<T>(problem.h_0);
  const auto c_0 = converted<A>(problem.c_0);
  std::vector<char> reset = problem.reset;
  const auto step_at = [&](int64_t n) {
    const int64_t t = order[n], rows_before = n ? rows[order[n - 1]] : 0;
    const int64_t* const lengths = shape.form == kLengths ? problem.length.data() : nullptr;
    const auto* const resets = reinterpret_cast<const bool*>(&reset[t * B]);
    return Step{t, rows[t], H, rows_before, shape.reverse, lengths, shape.reset ? resets : nullptr};
  };

  const auto h_mask = converted<T>(problem.h_mask);
  auto h_state = h_0, h_masked = h_0;  // by W_hh
  for (int64_t i = 0; i < B * H; ++i)
    h_masked[i] = from_double<T>(to_double(h_0[i]) * problem.mask(i));
  auto c_state = c_0;
  auto output = unwritten<T>(steps * B * H), gates = unwritten<T>(steps * B * 4 * H);
  auto cells = unwritten<A>(steps * B * H);
  for (int64_t n = 0; n < steps; ++n) {
    const int64_t t = order[n];
    const T* const seen = shape.masks ? h_masked.data() : h_state.data();
    const auto h_gates = gemm(seen, w_hh.data(), rows[t], H, 4 * H, true);
    ForwardStep<T, A> step{};
    static_cast<Step&>(step) = step_at(n);
    step.x_gates = &x_gates[t * B * 4 * H];
    step.h_gates = h_gates.data();
    // A result that is not needed overwrites a buffer that is no longer needed, as in
    // csrc/stepwise.
    step.gates = shape.save ? &gates[t * B * 4 * H] : &x_gates[t * B * 4 * H];
    step.c_state = c_state.data();
    step.cells = shape.save ? &cells[t * B * H] : c_state.data();
    step.h_state = h_state.data();
    if (shape.masks) step.h_mask = h_mask.data(), step.h_masked = h_masked.data();
    step.output = &output[t * B * H], step.output_stride = H;
    check(launch_step(step, nullptr) == cudaSuccess, "launch");
  }

  // Dead positions of output and gates must be 0. Positions that packed data does not have are set
  // to 0 here, because the kernels do not write them.
  const auto zero_missing = [&](auto& actual, int64_t size) {
    for (int64_t t = 0; t < steps; ++t)
      for (int64_t i = rows[t] * size; i < B * size; ++i)
        actual[t * B * size + i] = from_double<std::decay_t<decltype(actual[0])>>(0);
  };
  zero_missing(output, H);
  check_close(output, solution.output, roundoff<T>(), 16, "output");
  check_close(h_state, solution.h_n, roundoff<T>(), 16, "h_n");
  check_close(c_state, solution.c_n, roundoff<T>(), 16, "c_n");
  if (!shape.save) return;
  zero_missing(gates, 4 * H);
  check_close(gates, solution.gates, roundoff<T>(), 16, "gates");
  for (int64_t t = 0; t < steps; ++t)
    for (int64_t b = 0; b < B; ++b)
      if (problem.alive(t, b)) {
        const int64_t at = (t * B + b) * H;
        check_close(std::vector<A>(&cells[at], &cells[at] + H),
                    oracle::Values(&solution.cells[at], &solution.cells[at] + H), roundoff<T>(), 16,
                    "cells");
      }

  const auto d_output = converted<T>(problem.d_output);
  const auto d_cells = converted<A>(problem.d_cells);
  auto dh_state = converted<T>(problem.d_h_n);
  auto dc_state = converted<A>(problem.d_c_n);
  auto d_gates = unwritten<T>(steps * B * 4 * H);
  for (int64_t n = steps; n-- > 0;) {
    const int64_t t = order[n];
    BackwardStep<T, A> step{};
    static_cast<Step&>(step) = step_at(n);
    step.gates = &gates[t * B * 4 * H];
    step.cells = &cells[t * B * H];
    step.prev_cells = n ? &cells[order[n - 1] * B * H] : nullptr;
    step.c_0 = c_0.data();
    step.d_output = &d_output[t * B * H], step.d_output_stride = H;
    step.d_cells = &d_cells[t * B * H], step.d_cells_stride = H;
    step.dh_state = dh_state.data();
    if (shape.masks) step.h_mask = h_mask.data();
    if (n + 1 < steps) {
      const Step after = step_at(n + 1);
      step.rows_after = after.rows, step.reset_after = after.reset;
    }
    step.dc_state = dc_state.data();
    step.d_gates = &d_gates[t * B * 4 * H];
    check(launch_step(step, nullptr) == cudaSuccess, "launch");
    const auto from_gates = gemm(&d_gates[t * B * 4 * H], w_hh.data(), rows[t], 4 * H, H, false);
    for (int64_t j = 0; j < rows[t] * H; ++j)
      dh_state[j] = from_double<T>(to_double(dh_state[j]) + to_double(from_gates[j]));
  }
  for (int64_t j = 0; j < B * H; ++j) {  // after the first steps
    const int64_t b = j / H, first = shape.reverse ? problem.length[b] - 1 : 0;
    if (problem.length[b] == 0) continue;
    const double factor = problem.resets(first, b) ? 0 : problem.mask(j);
    dh_state[j] = from_double<T>(factor * to_double(dh_state[j]));
  }
  zero_missing(d_gates, 4 * H);
  check_close(d_gates, solution.d_gates, roundoff<T>(), 32, "d_gates");
  check_close(dh_state, solution.d_h_0, roundoff<T>(), 32, "d_h_0");
  check_close(dc_state, solution.d_c_0, roundoff<T>(), 32, "d_c_0");
}

// Rows 0 .. 3: as any, reset at the step after, dead, and at its last step.
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
  const oracle::Values projected = draw(B * P), before = draw(B * P), mask = draw(B * P);
  const oracle::Values d_output = draw(B * P), dh = draw(B * P);
  oracle::Values output, h, seen, d_projected, dh_after;
  for (int64_t i = 0; i < B * P; ++i) {
    const int64_t b = i / P;
    output.push_back(b == kDead ? 0 : projected[i]);
    h.push_back(b == kDead ? before[i] : projected[i]);
    seen.push_back(b == kDead ? before[i] : projected[i] * mask[i]);
    const double factor = b == kReset ? 0 : b == kLast ? 1 : mask[i];
    d_projected.push_back(b == kDead ? 0 : factor * dh[i] + d_output[i]);
    dh_after.push_back(b == kDead ? dh[i] : 0);
  }
  // Device memory is the heap's.
  const std::vector<char> reset = {false, true, false, true};
  const std::vector<int64_t> lengths = {3, 3, 1, 2};
  Step common{};
  common.t = 1, common.rows = B, common.hidden_size = P, common.lengths = lengths.data();
  const auto mask_T = converted<T>(mask), projected_T = converted<T>(projected);
  const auto d_output_T = converted<T>(d_output);

  auto h_state = converted<T>(before), h_masked = h_state, output_T = unwritten<T>(B * P);
  ProjectionForwardStep<T, A> forward{};
  static_cast<Step&>(forward) = common;
  forward.projected = projected_T.data(), forward.h_state = h_state.data();
  forward.h_mask = mask_T.data(), forward.h_masked = h_masked.data();
  forward.output = output_T.data(), forward.output_stride = P;
  check(launch_step(forward, nullptr) == cudaSuccess, "launch");
  check_close(output_T, output, roundoff<T>(), 0, "output");
  check_close(h_state, h, roundoff<T>(), 0, "h");
  check_close(h_masked, seen, roundoff<T>(), 2, "h_masked");

  auto dh_state = converted<T>(dh), d_projected_T = unwritten<T>(B * P);
  ProjectionBackwardStep<T, A> backward{};
  static_cast<Step&>(backward) = common;
  backward.dh_state = dh_state.data(), backward.h_mask = mask_T.data();
  backward.rows_after = B, backward.reset_after = reinterpret_cast<const bool*>(reset.data());
  backward.d_output = d_output_T.data(), backward.d_output_stride = P;
  backward.d_projected = d_projected_T.data();
  check(launch_step(backward, nullptr) == cudaSuccess, "launch");
  check_close(d_projected_T, d_projected, roundoff<T>(), 4, "d_projected");
  check_close(dh_state, dh_after, roundoff<T>(), 0, "dh");
}

template <typename T, typename A>
void add_cases() {
  const std::string prefix = std::string("stepwise/") + name_of<T>() + "/";
  const auto add = [&](const std::string& name, Shape shape) {
    Case(prefix + name, [shape] {
      for (simt::seed() = 1; simt::seed() <= 2; ++simt::seed()) run<T, A>(shape, simt::seed());
    });
  };
  add("one unit", {3, 1, 1, kDense, false, false, true});
  add("odd sizes", {5, 3, 37, kDense, false, false, true});
  add("only step", {1, 3, 37, kDense, false, true, true});
  add("wider than a block", {2, 2, 300, kDense, false, false, true});
  add("reverse", {5, 3, 8, kDense, true, false, true});
  add("nothing saved", {5, 3, 8, kDense, false, false, false});
  add("packed", {6, 5, 9, kPacked, false, false, true});
  add("packed reverse", {6, 5, 9, kPacked, true, false, true});
  add("lengths", {6, 7, 9, kLengths, false, false, true});
  add("lengths reverse", {6, 7, 9, kLengths, true, false, true});
  add("reset", {6, 5, 9, kDense, false, true, true});
  add("reset, lengths, reverse", {6, 7, 9, kLengths, true, true, true});
  add("recurrent dropout", {5, 3, 8, kDense, false, true, true, true});
  add("recurrent dropout, packed reverse", {6, 5, 9, kPacked, true, false, true, true});
  add("recurrent dropout, lengths", {6, 7, 9, kLengths, false, true, true, true});
  add("recurrent dropout, lengths, reverse", {6, 7, 9, kLengths, true, true, true, true});
  Case(prefix + "projection", [] { run_projected<T, A>(9); });
}
const bool added = (add_cases<double, double>(), add_cases<float, float>(),
                    add_cases<bfloat16, float>(), add_cases<float16, float>(), true);

// If there are more rows than the grid is high, a block processes several rows.
const Case many_rows("stepwise/more rows than a grid is high", [] {
  const int64_t rows = 1024 * 8 + 3, H = 1;
  const std::vector<float> x_gates(rows * 4, 0.0f), h_gates(rows * 4, 0.0f);
  std::vector<float> c_state(rows, 2.0f), h_state = unwritten<float>(rows);
  std::vector<float> gates(rows * 4);
  ForwardStep<float, float> step{};
  step.rows = rows, step.hidden_size = H;
  step.x_gates = x_gates.data();
  step.h_gates = h_gates.data();
  step.gates = gates.data();
  step.c_state = step.cells = c_state.data();
  step.h_state = step.output = h_state.data(), step.output_stride = 1;
  check(launch_step(step, nullptr) == cudaSuccess, "launch");
  check_close(c_state, oracle::Values(rows, 1.0), 0x1p-24, 4, "c");  // sigmoid(0) * 2
  check_close(h_state, oracle::Values(rows, 0.5 * std::tanh(1.0)), 0x1p-24, 4, "h");
});

}  // namespace
