// One step of the stepwise engine with layer normalization, against plain loops over the equations
// and gradients by central differences, both in float64.
#include <runtime.h>

#include <algorithm>

#include "../../csrc/cuda/launch.h"
#include "harness.h"

namespace {

using namespace fastlstm;
using testing::Case;
using testing::check;
using testing::check_close;
using testing::converted;
using testing::from_double;
using testing::to_double;
using testing::unwritten;
using Values = std::vector<double>;

// The inputs of one step of one row. `shift` is added to LN(c) * gain_c + bias_c, so that the
// gradient with respect to shift is the gradient of that sum.
struct Row {
  Values x, h_gates, gain_hh, gain_c, bias_c, shift;  // [4H] [4H] [4H] [H] [H] [H]
  Values h, c;                                        // [H], before the step
  bool reset;
};

// x, normalized to mean 0 and variance 1.
Values normed(const Values& x) {
  double mean = 0, variance = 0;
  for (double v : x) mean += v / x.size();
  for (double v : x) variance += (v - mean) * (v - mean) / x.size();
  Values y;
  for (double v : x) y.push_back((v - mean) / std::sqrt(variance + 1e-5));
  return y;
}

double logistic(double x) { return 1 / (1 + std::exp(-x)); }

struct State {
  Values gates, h, c;  // [4H] [H] [H], after the step
};
State step(const Row& row) {
  const size_t H = row.c.size();
  const Values from_h = normed(row.h_gates);
  State s;
  for (size_t k = 0; k < 4 * H; ++k) {
    const double pre = row.x[k] + (row.reset ? 0 : row.gain_hh[k] * from_h[k]);
    s.gates.push_back(k / H == 2 ? std::tanh(pre) : logistic(pre));
  }
  for (size_t u = 0; u < H; ++u)
    s.c.push_back(s.gates[H + u] * (row.reset ? 0 : row.c[u]) + s.gates[u] * s.gates[2 * H + u]);
  const Values normed_c = normed(s.c);
  for (size_t u = 0; u < H; ++u)
    s.h.push_back(s.gates[3 * H + u] *
                  std::tanh(row.gain_c[u] * normed_c[u] + row.bias_c[u] + row.shift[u]));
  return s;
}

// The gradient of L = h * dh + c * dc with respect to row.*input, by central differences.
Values gradient(Row row, Values Row::* input, const Values& dh, const Values& dc) {
  const auto loss = [&] {
    const State s = step(row);
    double sum = 0;
    for (size_t u = 0; u < dh.size(); ++u) sum += s.h[u] * dh[u] + s.c[u] * dc[u];
    return sum;
  };
  const double delta = 1e-5;
  Values d;
  for (double& x : row.*input) {
    const double before = x;
    x = before + delta;
    const double above = loss();
    x = before - delta;
    d.push_back((above - loss()) / (2 * delta));
    x = before;
  }
  return d;
}

// Checks a step of four rows: an ordinary row, a row that is reset before the step, a dead row, and
// a row that starts at this step, so that backward uses its c_0.
template <typename T, typename A>
void run(int64_t H) {
  constexpr int64_t B = 4, kDead = 2, kStarts = 3;
  std::mt19937 random(1);
  std::normal_distribution<double> normal;
  const auto draw = [&](int64_t n, double scale, double mean = 0) {
    Values values(n);
    for (double& v : values) v = to_double(from_double<T>(mean + scale * normal(random)));
    return values;
  };
  const Values x = draw(B * 4 * H, 1), h_gates = draw(B * 4 * H, 1), gain_hh = draw(4 * H, 0.2, 1);
  const Values gain_c = draw(H, 0.2, 1), bias_c = draw(H, 0.2);
  const Values h = draw(B * H, 0.5), c = draw(B * H, 1);
  const Values d_output = draw(B * H, 0.5), d_cells = draw(B * H, 0.5);
  const Values dh = draw(B * H, 0.5), dc = draw(B * H, 0.5);
  // Vectors and no arrays, because on a GPU (tests/gpu) kernels can read only memory of operator
  // new.
  const std::vector<char> reset = {false, true, false, false};
  const std::vector<int64_t> lengths = {2, 2, 1, 2};

  Values gates, h_new, c_new, d_gates, d_h_gates, d_normed, dh_prev, dc_prev;
  const auto append = [](Values& to, const Values& from) {
    to.insert(to.end(), from.begin(), from.end());
  };
  const auto part = [](const Values& all, int64_t row, int64_t size) {
    return Values(&all[row * size], &all[row * size] + size);
  };
  for (int64_t b = 0; b < B; ++b) {
    const Row row{part(x, b, 4 * H), part(h_gates, b, 4 * H), gain_hh,       gain_c,       bias_c,
                  Values(H, 0),      part(h, b, H),           part(c, b, H), reset[b] != 0};
    if (b == kDead) {
      for (Values* dead : {&gates, &d_gates, &d_h_gates}) append(*dead, Values(4 * H, 0));
      append(d_normed, Values(H, 0));
      append(h_new, row.h), append(c_new, row.c);
      append(dh_prev, part(dh, b, H)), append(dc_prev, part(dc, b, H));
      continue;
    }
    const State s = step(row);
    append(gates, s.gates), append(h_new, s.h), append(c_new, s.c);
    Values dh_b = part(dh, b, H), dc_b = part(dc, b, H);
    for (int64_t u = 0; u < H; ++u) dh_b[u] += d_output[b * H + u], dc_b[u] += d_cells[b * H + u];
    append(d_gates, gradient(row, &Row::x, dh_b, dc_b));
    append(d_h_gates, gradient(row, &Row::h_gates, dh_b, dc_b));
    append(d_normed, gradient(row, &Row::shift, dh_b, dc_b));
    append(dh_prev, Values(H, 0));
    append(dc_prev, gradient(row, &Row::c, dh_b, dc_b));
  }

  Step common{};
  common.t = 1, common.rows = B, common.hidden_size = H, common.prev_rows = kStarts;
  common.lengths = lengths.data();
  common.reset = reinterpret_cast<const bool*>(reset.data());
  const auto x_T = converted<T>(x), h_gates_T = converted<T>(h_gates);
  const auto gain_hh_T = converted<T>(gain_hh), gain_c_T = converted<T>(gain_c);
  const auto bias_c_T = converted<T>(bias_c);

  auto h_state = converted<T>(h), saved_gates = unwritten<T>(B * 4 * H);
  auto output = unwritten<T>(B * H);
  auto c_state = converted<A>(c), cells = unwritten<A>(B * H);
  NormForwardStep<T, A> forward{};
  static_cast<Step&>(forward) = common;
  forward.x_gates = x_T.data(), forward.h_gates = h_gates_T.data();
  forward.gates = saved_gates.data();
  forward.c_state = c_state.data(), forward.cells = cells.data();
  forward.h_state = h_state.data(), forward.output = output.data();
  forward.output_stride = H;
  forward.gain_hh = gain_hh_T.data(), forward.gain_c = gain_c_T.data();
  forward.bias_c = bias_c_T.data();
  check(launch_step(forward, nullptr) == cudaSuccess, "launch");

  // Central differences have an error of about 1e-9. Layer normalization divides by a standard
  // deviation, which may be below 1, so it enlarges errors.
  const double unit = testing::roundoff<T>(), unit_backward = std::fmax(unit, 1e-11);
  Values shown = h_new;
  std::fill_n(shown.begin() + kDead * H, H, 0);
  check_close(saved_gates, gates, unit, 32, "gates");
  check_close(output, shown, unit, 64, "output");
  check_close(h_state, h_new, unit, 64, "h");
  check_close(c_state, c_new, unit, 64, "c");
  check_close(cells, c_new, unit, 64, "cells");

  const auto d_output_T = converted<T>(d_output);
  const auto d_cells_A = converted<A>(d_cells), c_A = converted<A>(c);
  auto dh_state = converted<T>(dh), d_gates_T = unwritten<T>(B * 4 * H);
  auto d_h_gates_T = unwritten<T>(B * 4 * H);
  auto dc_state = converted<A>(dc), d_normed_A = unwritten<A>(B * H);
  NormBackwardStep<T, A> backward{};
  static_cast<Step&>(backward) = common;
  backward.gates = saved_gates.data(), backward.cells = cells.data();
  backward.prev_cells = backward.c_0 = c_A.data();
  backward.d_output = d_output_T.data(), backward.d_cells = d_cells_A.data();
  backward.dh_state = dh_state.data(), backward.dc_state = dc_state.data();
  backward.d_gates = d_gates_T.data();
  backward.d_output_stride = backward.d_cells_stride = H;
  backward.gain_hh = gain_hh_T.data(), backward.gain_c = gain_c_T.data();
  backward.bias_c = bias_c_T.data(), backward.h_gates = h_gates_T.data();
  backward.d_h_gates = d_h_gates_T.data(), backward.d_normed_cells = d_normed_A.data();
  check(launch_step(backward, nullptr) == cudaSuccess, "launch");
  check_close(d_gates_T, d_gates, unit_backward, 128, "d_gates");
  check_close(d_h_gates_T, d_h_gates, unit_backward, 128, "d_h_gates");
  check_close(d_normed_A, d_normed, unit_backward, 128, "d_normed_cells");
  check_close(dh_state, dh_prev, unit_backward, 128, "dh");
  check_close(dc_state, dc_prev, unit_backward, 128, "dc");
}

template <typename T, typename A>
void add_cases() {
  const std::string prefix = std::string("layer norm/") + testing::name_of<T>() + "/";
  const auto add = [&](const std::string& name, int64_t hidden_size) {
    Case(prefix + name, [=] {
      for (simt::seed() = 1; simt::seed() <= 3; ++simt::seed()) run<T, A>(hidden_size);
    });
  };
  add("one row", 13);
  add("more units than threads", 270);
  // 1,100 units are for the loops that are unrolled by four. With so many units, the error of the
  // central differences is too large for float64.
  if (sizeof(T) < 8) Case("deep/" + prefix + "many units", [] { run<T, A>(1100); });
}
const bool added = (add_cases<double, double>(), add_cases<float, float>(),
                    add_cases<bfloat16, float>(), add_cases<float16, float>(), true);

}  // namespace
