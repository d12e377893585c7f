// Computes the LSTM and its gradient in float64, by plain loops over the equations of Hochreiter
// and Schmidhuber (1997) with a forget gate. It shares no code with the kernels under test.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

namespace oracle {

using Values = std::vector<double>;

// A batch whose rows have T steps, a PackedSequence, or a padded batch with lengths in any order.
enum Form { kDense, kPacked, kLengths };

struct Options {
  Form form = kDense;
  bool reverse = false;  // whether the direction goes from the last step to the first
  bool reset = false;    // whether states are reset inside the rows
  bool masks = false;    // whether there is recurrent dropout
};

// One direction of one layer, with the input already multiplied by W_ih. All values are padded to
// [T,B]. The position (t, b) is alive if t < length[b], and dead otherwise.
struct Problem {
  int64_t T, B, H;
  Options options;
  std::vector<int64_t> length;             // [B]
  std::vector<char> reset;                 // [T,B], or empty
  Values x_gates, w_hh, h_0, c_0;          // [T,B,4H] [4H,H] [B,H] [B,H]
  Values d_output, d_cells, d_h_n, d_c_n;  // gradients: [T,B,H] [T,B,H] [B,H] [B,H]
  Values h_mask;  // [B,H] factors of h before the product with W_hh; empty without dropout

  bool alive(int64_t t, int64_t b) const { return t < length[b]; }
  // A PackedSequence has only the alive rows of a step.
  int64_t rows(int64_t t) const {
    return options.form == kPacked
               ? std::count_if(length.begin(), length.end(), [&](int64_t n) { return n > t; })
               : B;
  }
  bool resets(int64_t t, int64_t b) const { return !reset.empty() && reset[t * B + b]; }
  double mask(int64_t i) const { return h_mask.empty() ? 1 : h_mask[i]; }
};

// The results of a problem. At dead positions output and gates are 0.
struct Solution {
  Values output, gates, cells, h_n, c_n;  // [T,B,H] [T,B,4H] [T,B,H] [B,H] [B,H]
  Values d_gates, d_h_0, d_c_0;           // gradients: [T,B,4H] [B,H] [B,H]
};

// A random problem. `round` rounds each value to the dtype of the kernel. The directions of one
// seed have the same lengths and resets, and different values.
template <typename Round>
Problem random_problem(int64_t T, int64_t B, int64_t H, const Options& options, unsigned seed,
                       Round round, int direction = 0) {
  std::mt19937 random(seed + 100 * direction), common(seed);
  std::normal_distribution<double> normal;
  const auto draw = [&](int64_t n, double scale) {
    Values values(n);
    for (double& v : values) v = round(scale * normal(random));
    return values;
  };
  Problem p;
  p.T = T, p.B = B, p.H = H, p.options = options;
  p.length.assign(B, T);
  p.x_gates = draw(T * B * 4 * H, 1);
  p.w_hh = draw(4 * H * H, 1 / std::sqrt(double(H)));
  p.h_0 = draw(B * H, 0.5), p.c_0 = draw(B * H, 0.5);
  p.d_output = draw(T * B * H, 0.5), p.d_cells = draw(T * B * H, 0.5);
  p.d_h_n = draw(B * H, 0.5), p.d_c_n = draw(B * H, 0.5);
  if (options.form != kDense)
    for (auto& n : p.length) n = common() % (T + 1);
  p.length[B / 2] = T;
  if (options.form == kPacked) {
    for (auto& n : p.length) n = std::max<int64_t>(n, 1);
    std::sort(p.length.rbegin(), p.length.rend());
  }
  if (options.reset)
    for (int64_t i = 0; i < T * B; ++i) p.reset.push_back(common() % 4 == 0);
  if (options.masks)  // factors that every dtype represents exactly
    for (int64_t i = 0; i < B * H; ++i) p.h_mask.push_back(random() % 5 / 4.0);
  return p;
}

inline double logistic(double x) { return 1 / (1 + std::exp(-x)); }

inline Solution solve(const Problem& p) {
  const int64_t T = p.T, B = p.B, H = p.H;
  Solution s;
  s.output.assign(T * B * H, 0), s.gates.assign(T * B * 4 * H, 0), s.cells.assign(T * B * H, 0);
  s.h_n = p.h_0, s.c_n = p.c_0;
  s.d_gates.assign(T * B * 4 * H, 0);
  s.d_h_0.assign(B * H, 0), s.d_c_0.assign(B * H, 0);
  for (int64_t b = 0; b < B; ++b) {
    std::vector<int64_t> order;
    for (int64_t t = 0; t < p.length[b]; ++t)
      order.push_back(p.options.reverse ? p.length[b] - 1 - t : t);
    std::vector<Values> h_before, c_before;
    Values h(p.h_0.begin() + b * H, p.h_0.begin() + (b + 1) * H);
    Values c(p.c_0.begin() + b * H, p.c_0.begin() + (b + 1) * H);
    for (int64_t t : order) {
      if (p.resets(t, b)) h.assign(H, 0), c.assign(H, 0);
      h_before.push_back(h), c_before.push_back(c);
      const double* x = &p.x_gates[(t * B + b) * 4 * H];
      double* gate = &s.gates[(t * B + b) * 4 * H];
      for (int64_t r = 0; r < 4 * H; ++r) {
        double z = x[r];
        for (int64_t k = 0; k < H; ++k)
          z += p.w_hh[r * H + k] * (p.mask(b * H + k) * h_before.back()[k]);
        gate[r] = r / H == 2 ? std::tanh(z) : logistic(z);
      }
      for (int64_t j = 0; j < H; ++j) {
        const int64_t at = (t * B + b) * H + j;
        c[j] = gate[H + j] * c[j] + gate[j] * gate[2 * H + j];
        h[j] = gate[3 * H + j] * std::tanh(c[j]);
        s.cells[at] = c[j];
        s.output[at] = h[j];
      }
    }
    std::copy(h.begin(), h.end(), s.h_n.begin() + b * H);
    std::copy(c.begin(), c.end(), s.c_n.begin() + b * H);

    Values dh(p.d_h_n.begin() + b * H, p.d_h_n.begin() + (b + 1) * H);
    Values dc(p.d_c_n.begin() + b * H, p.d_c_n.begin() + (b + 1) * H);
    for (size_t n = order.size(); n-- > 0;) {
      const int64_t at = order[n] * B + b;
      const double* gate = &s.gates[at * 4 * H];
      double* dz = &s.d_gates[at * 4 * H];
      for (int64_t j = 0; j < H; ++j) {
        const double i = gate[j], f = gate[H + j], g = gate[2 * H + j], o = gate[3 * H + j];
        const double tanh_c = std::tanh(f * c_before[n][j] + i * g);
        const double dh_j = dh[j] + p.d_output[at * H + j];
        const double dc_j = dc[j] + p.d_cells[at * H + j] + dh_j * o * (1 - tanh_c * tanh_c);
        dz[j] = dc_j * g * i * (1 - i);
        dz[H + j] = dc_j * c_before[n][j] * f * (1 - f);
        dz[2 * H + j] = dc_j * i * (1 - g * g);
        dz[3 * H + j] = dh_j * tanh_c * o * (1 - o);
        dc[j] = dc_j * f;
      }
      dh.assign(H, 0);
      for (int64_t r = 0; r < 4 * H; ++r)
        for (int64_t k = 0; k < H; ++k) dh[k] += p.mask(b * H + k) * p.w_hh[r * H + k] * dz[r];
      if (p.resets(order[n], b)) dh.assign(H, 0), dc.assign(H, 0);
    }
    std::copy(dh.begin(), dh.end(), s.d_h_0.begin() + b * H);
    std::copy(dc.begin(), dc.end(), s.d_c_0.begin() + b * H);
  }
  return s;
}

}  // namespace oracle
