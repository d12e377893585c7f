// The CUDA kernels of the stepwise engine against the oracle. Plain loops over the time steps and
// plain matrix products replace the code of csrc/stepwise, which uses ATen.
#include <runtime.h>

#include <algorithm>

#include "../../csrc/cuda/launch.h"
#include "harness.h"
#include "oracle.h"

namespace {

using namespace fastlstm;
using testing::Case;
using testing::check_close;
using testing::converted;
using testing::from_double;
using testing::to_double;
using testing::unwritten;

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
    const int64_t t = order[n];
    return Step{t,
                rows[t],
                H,
                n ? rows[order[n - 1]] : 0,
                shape.reverse,
                shape.form == kLengths ? problem.length.data() : nullptr,
                shape.reset ? reinterpret_cast<const bool*>(&reset[t * B]) : nullptr};
  };

  auto h_state = h_0;
  auto c_state = c_0;
  auto output = unwritten<T>(steps * B * H), gates = unwritten<T>(steps * B * 4 * H);
  auto cells = unwritten<A>(steps * B * H);
  for (int64_t n = 0; n < steps; ++n) {
    const int64_t t = order[n];
    auto seen = h_state;  // by W_hh
    for (int64_t i = 0; i < B * H; ++i)
      seen[i] = from_double<T>(to_double(seen[i]) * problem.mask(i));
    const auto h_gates = gemm(seen.data(), w_hh.data(), rows[t], H, 4 * H, true);
    StepForward<T, A> step;
    static_cast<Step&>(step) = step_at(n);
    step.x_gates = &x_gates[t * B * 4 * H];
    step.h_gates = h_gates.data();
    // A result that is not needed overwrites a buffer that is no longer needed, as in
    // csrc/stepwise.
    step.gates = shape.save ? &gates[t * B * 4 * H] : &x_gates[t * B * 4 * H];
    step.c_state = c_state.data();
    step.cells = shape.save ? &cells[t * B * H] : c_state.data();
    step.h_state = h_state.data();
    step.output = &output[t * B * H], step.output_stride = H;
    testing::check(launch_step(step, nullptr) == cudaSuccess, "launch");
  }

  // Dead positions of output and gates must be 0. Positions that packed data does not have are set
  // to 0 here, because the kernels do not write them.
  const auto zero_missing = [&](auto& actual, int64_t size) {
    for (int64_t t = 0; t < steps; ++t)
      for (int64_t i = rows[t] * size; i < B * size; ++i)
        actual[t * B * size + i] = from_double<std::decay_t<decltype(actual[0])>>(0);
  };
  zero_missing(output, H);
  check_close(output, solution.output, testing::roundoff<T>(), 16, "output");
  check_close(h_state, solution.h_n, testing::roundoff<T>(), 16, "h_n");
  check_close(c_state, solution.c_n, testing::roundoff<T>(), 16, "c_n");
  if (!shape.save) return;
  zero_missing(gates, 4 * H);
  check_close(gates, solution.gates, testing::roundoff<T>(), 16, "gates");
  for (int64_t t = 0; t < steps; ++t)
    for (int64_t b = 0; b < B; ++b)
      if (problem.alive(t, b))
        check_close(
            std::vector<A>(&cells[(t * B + b) * H], &cells[(t * B + b) * H] + H),
            oracle::Values(&solution.cells[(t * B + b) * H], &solution.cells[(t * B + b) * H] + H),
            testing::roundoff<T>(), 16, "cells");

  const auto d_output = converted<T>(problem.d_output);
  const auto d_cells = converted<A>(problem.d_cells);
  auto dh_state = converted<T>(problem.d_h_n);
  auto dc_state = converted<A>(problem.d_c_n);
  auto d_gates = unwritten<T>(steps * B * 4 * H);
  for (int64_t n = steps; n-- > 0;) {
    const int64_t t = order[n];
    StepBackward<T, A> step;
    static_cast<Step&>(step) = step_at(n);
    step.gates = &gates[t * B * 4 * H];
    step.cells = &cells[t * B * H];
    step.prev_cells = n ? &cells[order[n - 1] * B * H] : nullptr;
    step.c_0 = c_0.data();
    step.d_output = &d_output[t * B * H], step.d_output_stride = H;
    step.d_cells = &d_cells[t * B * H], step.d_cells_stride = H;
    step.dh_state = dh_state.data();
    step.dc_state = dc_state.data();
    step.d_gates = &d_gates[t * B * 4 * H];
    testing::check(launch_step(step, nullptr) == cudaSuccess, "launch");
    const auto from_gates = gemm(&d_gates[t * B * 4 * H], w_hh.data(), rows[t], 4 * H, H, false);
    for (int64_t b = 0; b < rows[t]; ++b)
      if (!problem.resets(t, b))
        for (int64_t j = b * H; j < (b + 1) * H; ++j)
          dh_state[j] =
              from_double<T>(to_double(dh_state[j]) + problem.mask(j) * to_double(from_gates[j]));
  }
  zero_missing(d_gates, 4 * H);
  check_close(d_gates, solution.d_gates, testing::roundoff<T>(), 32, "d_gates");
  check_close(dh_state, solution.d_h_0, testing::roundoff<T>(), 32, "d_h_0");
  check_close(dc_state, solution.d_c_0, testing::roundoff<T>(), 32, "d_c_0");
}

template <typename T, typename A>
void add_cases() {
  const std::string prefix = std::string("stepwise/") + testing::name_of<T>() + "/";
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
}
const bool added = (add_cases<double, double>(), add_cases<float, float>(),
                    add_cases<bfloat16, float>(), add_cases<float16, float>(), true);

// If there are more rows than the grid is high, a block processes several rows.
const Case many_rows("stepwise/more rows than a grid is high", [] {
  const int64_t rows = 1024 * 8 + 3, H = 1;
  const std::vector<float> x_gates(rows * 4, 0.0f), h_gates(rows * 4, 0.0f);
  std::vector<float> c_state(rows, 2.0f), h_state = unwritten<float>(rows);
  std::vector<float> gates(rows * 4);
  StepForward<float, float> step{};
  step.rows = rows, step.hidden_size = H;
  step.x_gates = x_gates.data();
  step.h_gates = h_gates.data();
  step.gates = gates.data();
  step.c_state = step.cells = c_state.data();
  step.h_state = step.output = h_state.data(), step.output_stride = 1;
  testing::check(launch_step(step, nullptr) == cudaSuccess, "launch");
  check_close(c_state, oracle::Values(rows, 1.0), 0x1p-24, 4, "c");  // sigmoid(0) * 2
  check_close(h_state, oracle::Values(rows, 0.5 * std::tanh(1.0)), 0x1p-24, 4, "h");
});

}  // namespace
