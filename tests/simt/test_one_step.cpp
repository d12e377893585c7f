// The kernel of a whole step against the oracle, whose input's part is computed here in float64.
#include <runtime.h>  // of the emulator, or of tests/ptx

#include <algorithm>

#include "../../csrc/cuda/launch.h"
#include "harness.h"
#include "oracle.h"

namespace {

using namespace fastlstm;
using oracle::kDense, oracle::kLengths;
using testing::check;
using testing::check_close;
using testing::converted;
using testing::from_double;
using testing::to_double;
using testing::unwritten;

struct Shape {
  int64_t I, H, B;
  oracle::Form form = kDense;
  bool reset = false, masks = false;
  bool bias = true, save = true, in_place = false;  // of c
  int64_t output_stride = 0;                        // 0: H
};

template <typename T, typename C>
void run(const Shape& shape, bool allow_tf32, double unit, unsigned seed) {
  const int64_t I = shape.I, H = shape.H, B = shape.B;
  const auto rounded = [](double x) { return to_double(from_double<T>(x)); };
  auto problem =
      oracle::random_problem(1, B, H, {shape.form, false, shape.reset, shape.masks}, seed, rounded);
  for (double& c : problem.c_0) c = to_double(from_double<C>(c));
  std::mt19937 random(seed + 1000);
  std::normal_distribution<double> normal;
  const auto draw = [&](int64_t n, double scale) {
    oracle::Values values(n);
    for (double& v : values) v = rounded(scale * normal(random));
    return values;
  };
  const auto x = draw(B * I, 1), w_ih = draw(4 * H * I, 1 / std::sqrt(double(I)));
  const auto b_ih = draw(4 * H, 0.5), b_hh = draw(4 * H, 0.5);
  for (int64_t b = 0; b < B; ++b)
    for (int64_t r = 0; r < 4 * H; ++r) {
      double& sum = problem.x_gates[b * 4 * H + r];
      sum = shape.bias ? b_ih[r] + b_hh[r] : 0;
      for (int64_t k = 0; k < I; ++k) sum += w_ih[r * I + k] * x[b * I + k];
    }
  const oracle::Solution solution = oracle::solve(problem);

  const auto x_in = converted<T>(x), w_ih_in = converted<T>(w_ih);
  const auto b_ih_in = converted<T>(b_ih), b_hh_in = converted<T>(b_hh);
  const auto w_hh = converted<T>(problem.w_hh), h_0 = converted<T>(problem.h_0);
  auto h_seen = h_0;
  for (int64_t i = 0; i < B * H; ++i) h_seen[i] = from_double<T>(problem.h_0[i] * problem.mask(i));
  auto c_0 = converted<C>(problem.c_0), c_n = unwritten<C>(B * H);
  const int64_t stride = shape.output_stride ? shape.output_stride : H;
  auto output = unwritten<T>(B * stride), h_n = unwritten<T>(B * H),
       gates = unwritten<T>(B * 4 * H);
  auto cells = unwritten<float>(B * H);
  FusedStepForward<T, float> step{};
  step.rows = B, step.hidden_size = H, step.input_size = I;
  step.lengths = shape.form == kLengths ? problem.length.data() : nullptr;
  if (shape.reset) step.reset = reinterpret_cast<const bool*>(problem.reset.data());
  if (shape.save) step.gates = gates.data(), step.cells = cells.data();
  step.h_state = h_n.data(), step.output = output.data(), step.output_stride = stride;
  if (shape.bias) step.b_ih = b_ih_in.data(), step.b_hh = b_hh_in.data();
  step.h_0 = h_0.data();
  C* const c_to = shape.in_place ? c_0.data() : c_n.data();
  if constexpr (std::is_same_v<C, float>)
    step.c_0 = c_0.data(), step.c_n = c_to;
  else
    step.c_0_narrow = c_0.data(), step.c_n_narrow = c_to;
  step.input = x_in.data(), step.w_ih = w_ih_in.data();
  step.h_seen = h_seen.data(), step.w_hh = w_hh.data();
  check(launch_step(step, allow_tf32, nullptr) == cudaSuccess, "launch");

  std::vector<T> rows;
  for (int64_t i = 0; i < B * H; ++i) rows.push_back(output[i / H * stride + i % H]);
  check_close(rows, solution.output, unit, 16, "output");
  check_close(h_n, solution.h_n, unit, 16, "h_n");
  check_close(shape.in_place ? c_0 : c_n, solution.c_n, unit, 16, "c_n");
  if (!shape.save) return;
  check_close(gates, solution.gates, unit, 16, "gates");
  check_close(cells, solution.c_n, unit, 16, "cells");  // those of a dead row are its state
}

template <typename T, typename C>
void add(const char* kind, bool allow_tf32, double unit) {
  const auto add_shape = [&](const std::string& name, const Shape& shape, int seeds = 2) {
    testing::Case(testing::text("one step/", kind, "/", name), [=] {
      for (simt::seed() = 1; simt::seed() <= unsigned(seeds); ++simt::seed())
        run<T, C>(shape, allow_tf32, unit, simt::seed());
    });
  };
  add_shape("one row", {16, 8, 1});
  add_shape("a tile of 8 rows", {24, 16, 8});
  add_shape("more rows", {16, 8, 9});
  add_shape("rows in several blocks", {8, 8, 70}, 1);
  add_shape("deep", {1040, 8, 3}, 1);
  add_shape("deep in h", {8, 264, 2}, 1);
  add_shape("deep, many rows", {2080 / int64_t(sizeof(T)), 136, 61}, 1);
  Shape s{16, 16, 5};
  s.reset = true;
  add_shape("resets", s);
  s.B = 12, s.form = kLengths, s.masks = true, s.output_stride = 40;
  add_shape("lengths, masks", s);
  s = {16, 8, 11};
  s.bias = s.save = false, s.in_place = true;
  add_shape("c in place, nothing saved", s);
}

const bool added =
    (add<float, float>("float32", false, 0x1p-24), add<float, float>("tf32", true, 0x1p-11),
     add<bfloat16, bfloat16>("bfloat16", false, 0x1p-9),
     add<bfloat16, float>("bfloat16, c in float32", false, 0x1p-9),
     add<float16, float16>("float16", false, 0x1p-11),
     add<float16, float>("float16, c in float32", false, 0x1p-11), true);

// Rows of 6 values in 16 bits are no whole pieces.
const testing::Case odd("one step/odd rows are refused", [] {
  const std::vector<bfloat16> zeros(4 * 8 * 8, bfloat16(0.0f));
  FusedStepForward<bfloat16, float> step{};
  step.rows = 1, step.hidden_size = 8, step.input_size = 6;
  step.input = step.w_ih = step.h_seen = step.w_hh = zeros.data();
  check(launch_step(step, true, nullptr) == cudaErrorInvalidValue, "the input");
  step.input_size = 8, step.hidden_size = 6;
  check(launch_step(step, true, nullptr) == cudaErrorInvalidValue, "h");
  step.hidden_size = 8, step.w_ih = zeros.data() + 1;
  check(launch_step(step, true, nullptr) == cudaErrorInvalidValue, "an address");
});

}  // namespace
