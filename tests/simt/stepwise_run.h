// The kernels of the stepwise engine against the oracle, for one direction of a layer. Plain loops
// over the time steps and plain matrix products replace csrc/stepwise, which uses ATen.
#pragma once
#include <algorithm>

#include "../../csrc/equations/lstm_params.h"
#include "harness.h"
#include "oracle.h"

namespace stepwise {

using namespace fastlstm;
using namespace testing;
using oracle::kDense, oracle::kLengths, oracle::kPacked;

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

struct Shape {
  int64_t T, B, H;
  oracle::Form form = kDense;
  bool reverse = false, reset = false, save = true, masks = false;
};

// Compares all results with the oracle and returns their bytes. States have the dtype A.
// launch(step) runs the kernel for a ForwardStep<T, A> or a BackwardStep<T, A>.
template <typename T, typename A, typename Launch>
Bytes run(const Shape& shape, unsigned seed, const Launch& launch) {
  const int64_t B = shape.B, H = shape.H, steps = shape.T;
  const auto problem = oracle::random_problem(
      steps, B, H, {shape.form, shape.reverse, shape.reset, shape.masks}, seed, rounded<T>);
  auto x_gates = converted<T>(problem.x_gates);
  const oracle::Solution solution = oracle::solve(problem);

  std::vector<int64_t> rows(steps), order(steps);
  for (int64_t n = 0; n < steps; ++n)
    rows[n] = problem.rows(n), order[n] = shape.reverse ? steps - 1 - n : n;

  const auto w_hh = converted<T>(problem.w_hh), h_0 = converted<T>(problem.h_0);
  const auto c_0 = converted<A>(problem.c_0);
  const auto step_at = [&](int64_t n) {
    const int64_t t = order[n], rows_before = n ? rows[order[n - 1]] : 0;
    const int64_t* const lengths = shape.form == kLengths ? problem.length.data() : nullptr;
    const auto* const resets = reinterpret_cast<const bool*>(problem.reset.data()) + t * B;
    return Step{t, rows[t], H, rows_before, shape.reverse, lengths, shape.reset ? resets : nullptr};
  };

  const auto h_mask = converted<T>(problem.h_mask);
  auto h_state = h_0, h_masked = h_0;  // with masks, W_hh multiplies h_masked
  for (int64_t i = 0; i < B * H; ++i)
    h_masked[i] = from_double<T>(to_double(h_0[i]) * problem.mask(i));
  auto c_state = c_0;
  auto output = unwritten<T>(steps * B * H), gates = unwritten<T>(steps * B * 4 * H);
  auto cells = unwritten<A>(steps * B * H);
  for (int64_t n = 0; n < steps; ++n) {
    const int64_t t = order[n];
    const T* const h_input = shape.masks ? h_masked.data() : h_state.data();
    const auto h_gates = gemm(h_input, w_hh.data(), rows[t], H, 4 * H, true);
    ForwardStep<T, A> step{};
    static_cast<Step&>(step) = step_at(n);
    step.x_gates = &x_gates[t * B * 4 * H], step.h_gates = h_gates.data();
    // Results that nobody needs overwrite a buffer that is not needed later, as in csrc/stepwise.
    step.gates = shape.save ? &gates[t * B * 4 * H] : &x_gates[t * B * 4 * H];
    step.c_state = c_state.data(), step.h_state = h_state.data();
    step.cells = shape.save ? &cells[t * B * H] : c_state.data();
    if (shape.masks) step.h_mask = h_mask.data(), step.h_masked = h_masked.data();
    step.output = &output[t * B * H], step.output_stride = H;
    launch(step);
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
  if (!shape.save) return bytes_of(output, h_state, c_state);
  zero_missing(gates, 4 * H);
  check_close(gates, solution.gates, roundoff<T>(), 16, "gates");
  auto live_cells = cells;
  for (int64_t i = 0; i < steps * B * H; ++i)
    if (!problem.alive(i / H / B, i / H % B)) live_cells[i] = 0;
  check_close(live_cells, solution.cells, roundoff<T>(), 8, "cells");

  const auto d_output = converted<T>(problem.d_output);
  const auto d_cells = converted<A>(problem.d_cells);
  auto dh_state = converted<T>(problem.d_h_n), d_gates = unwritten<T>(steps * B * 4 * H);
  auto dc_state = converted<A>(problem.d_c_n);
  for (int64_t n = steps; n-- > 0;) {
    const int64_t t = order[n];
    BackwardStep<T, A> step{};
    static_cast<Step&>(step) = step_at(n);
    step.gates = &gates[t * B * 4 * H], step.cells = &cells[t * B * H];
    step.prev_cells = n ? &cells[order[n - 1] * B * H] : nullptr, step.c_0 = c_0.data();
    step.d_output = &d_output[t * B * H], step.d_output_stride = H;
    step.d_cells = &d_cells[t * B * H], step.d_cells_stride = H;
    step.dh_state = dh_state.data(), step.dc_state = dc_state.data();
    step.d_gates = &d_gates[t * B * 4 * H];
    if (shape.masks) step.h_mask = h_mask.data();
    if (n + 1 < steps) {
      const Step after = step_at(n + 1);
      step.rows_after = after.rows, step.reset_after = after.reset;
    }
    launch(step);
    const auto from_gates = gemm(&d_gates[t * B * 4 * H], w_hh.data(), rows[t], 4 * H, H, false);
    for (int64_t j = 0; j < rows[t] * H; ++j)
      dh_state[j] = from_double<T>(to_double(dh_state[j]) + to_double(from_gates[j]));
  }
  for (int64_t j = 0; j < B * H; ++j) {  // from the gradient of mask * h_0 to that of h_0
    const int64_t b = j / H, first = shape.reverse ? problem.length[b] - 1 : 0;
    if (problem.length[b] == 0) continue;
    const double factor = problem.resets(first, b) ? 0 : problem.mask(j);
    dh_state[j] = from_double<T>(factor * to_double(dh_state[j]));
  }
  zero_missing(d_gates, 4 * H);
  check_close(d_gates, solution.d_gates, roundoff<T>(), 32, "d_gates");
  check_close(dh_state, solution.d_h_0, roundoff<T>(), 32, "d_h_0");
  check_close(dc_state, solution.d_c_0, roundoff<T>(), 32, "d_c_0");
  return bytes_of(output, h_state, c_state, gates, cells, d_gates, dh_state, dc_state);
}

}  // namespace stepwise
