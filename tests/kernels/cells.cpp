// The cell kernels of the tiled and the stepwise engine against the oracle. Plain loops over the
// time steps replace csrc/cpu/walk. ../simt/stepwise_run.h has the loops of the stepwise engine.
#include <algorithm>
#include <cmath>

#include "../simt/stepwise_run.h"
#include "cpu/gemm/gate_order.h"
#include "cpu/plan.h"
#include "parts.h"
#include "targets.h"

namespace {

using namespace fastlstm;
using namespace testing;

struct Shape {
  int64_t T, B, H;
};

// A layer by the tiled engine: `gemm` multiplies with W_hh, then `cell` computes the cells.
template <typename T>
class TiledLayer {
  using A = State_t<T>;

 public:
  TiledLayer(const GemmKernels& gemm, const CellKernels<T>& cell, const Shape& shape, unsigned seed)
      : gemm_(gemm), cell_(cell), steps_(shape.T), B_(shape.B), H_(shape.H), seed_(seed) {}

  Bytes run() {
    const oracle::Solution solution = oracle::solve(problem_);
    forward();
    check_close(output_, solution.output, roundoff<T>(), 16, "output");
    check_close(gates_, solution.gates, roundoff<T>(), 16, "gates");
    check_close(cells_, solution.cells, roundoff<T>(), 16, "cells");
    const std::vector<A> d_c_0 = backward();
    check_close(d_gates_, solution.d_gates, roundoff<T>(), 32, "d_gates");
    check_close(d_c_0, solution.d_c_0, roundoff<T>(), 32, "d_c_0");
    return bytes_of(output_, gates_, cells_, d_gates_, d_c_0);
  }

 private:
  bool resets(int64_t t, int64_t b) const { return problem_.resets(t, b); }

  // Multiplies B rows by the columns [first, first + N) of a matrix of K rows. Returns the sums
  // [B, N rounded up to whole vectors].
  std::vector<A> multiply(const std::vector<const void*>& rows, const MatrixRows& matrix, int64_t K,
                          int64_t first, int64_t N) const {
    const int64_t lanes = gemm_.lanes, vectors = divide_up(N, lanes);
    std::vector<A> sums(B_ * vectors * lanes);
    for (int64_t v = 0; v < vectors; v += gemm_.max_vectors) {
      const int64_t count = std::min<int64_t>(gemm_.max_vectors, vectors - v);
      const int64_t width = count * lanes;
      std::vector<T> panel(round_up(K, gemm_.k_multiple) * width);
      gemm_.pack(matrix, 0, K, {first + v * lanes, std::min(N - v * lanes, width), count},
                 panel.data());
      const auto to = rows_of(&sums[v * lanes], B_, vectors * lanes);
      gemm_.multiply({rows.data(), B_, 0, K, panel.data(), {0, width, count}, to.data(), false});
    }
    return sums;
  }

  // x_gates [T,B,4H] in gate order, padded with zeros.
  std::vector<A> ordered_x_gates() const {
    const auto x_gates = converted<A>(problem_.x_gates);
    const int64_t lanes = gemm_.lanes, width = round_up(H_, lanes);
    std::vector<A> ordered(steps_ * B_ * 4 * width);
    for (int64_t row = 0; row < steps_ * B_; ++row)
      for (int64_t gate = 0; gate < 4; ++gate)
        for (int64_t u = 0; u < H_; ++u)
          ordered[row * 4 * width + u / lanes * 4 * lanes +
                  gate * order_.lanes_at(u / lanes * lanes) + u % lanes] =
              x_gates[(row * 4 + gate) * H_ + u];
    return ordered;
  }

  void forward() {
    const auto x_gates = ordered_x_gates();
    const int64_t x_width = x_gates.size() / (steps_ * B_);
    const auto h_0 = converted<T>(problem_.h_0);
    const auto c_0 = converted<A>(problem_.c_0);
    for (int64_t t = 0; t < steps_; ++t) {
      std::vector<const void*> h_prev;
      std::vector<ForwardRow<T>> rows;
      for (int64_t b = 0; b < B_; ++b) {
        const int64_t row = t * B_ + b;
        const T* h = t ? &output_[(row - B_) * H_] : &h_0[b * H_];
        const A* c = t ? &cells_[(row - B_) * H_] : &c_0[b * H_];
        if (resets(t, b)) h = zeros_.data(), c = state_zeros_.data();
        h_prev.push_back(h);
        rows.push_back({&x_gates[row * x_width], &gates_[row * 4 * H_], c, &cells_[row * H_],
                        &output_[row * H_]});
      }
      const int64_t lanes = gemm_.lanes;
      for (int64_t unit = 0; unit < H_; unit += lanes) {
        std::vector<const void*> columns;  // of W_hh transposed, for one vector of units
        for (int64_t gate = 0; gate < 4; ++gate)
          for (int64_t u = unit; u < unit + order_.lanes_at(unit); ++u)
            columns.push_back(u < H_ ? &w_hh_[(gate * H_ + u) * H_] : zeros_.data());
        columns.resize(4 * lanes, zeros_.data());
        const Units units{unit, std::min(lanes, H_ - unit), H_};
        cell_.prefetch_forward(rows.data(), B_, units);
        const auto sums = multiply(h_prev, {columns.data(), true}, H_, 0, 4 * lanes);
        cell_.forward(rows.data(), B_, {sums.data(), 4 * lanes, nullptr, order_.lanes_at(unit)},
                      units);
      }
    }
  }

  std::vector<A> backward() {
    const auto d_output = converted<T>(problem_.d_output), d_h_n = converted<T>(problem_.d_h_n);
    const auto c_0 = converted<A>(problem_.c_0), d_cells = converted<A>(problem_.d_cells);
    auto dc = converted<A>(problem_.d_c_n);
    const auto w_rows = rows_of<const void*>(w_hh_.data(), 4 * H_, H_);
    for (int64_t t = steps_; t-- > 0;) {
      const bool last = t == steps_ - 1;
      std::vector<const void*> d_gates_next;
      std::vector<BackwardRow<T>> rows;
      for (int64_t b = 0; b < B_; ++b) {
        const int64_t row = t * B_ + b, offset = b * H_;
        const A* c_prev = t ? &cells_[(row - B_) * H_] : &c_0[offset];
        const bool ends = last || resets(t + 1, b);
        d_gates_next.push_back(ends ? zeros_.data() : &d_gates_[(row + B_) * 4 * H_]);
        rows.push_back({&d_output[row * H_], last ? &d_h_n[offset] : zeros_.data(),
                        &d_cells[row * H_], &gates_[row * 4 * H_], &cells_[row * H_],
                        resets(t, b) ? state_zeros_.data() : c_prev, &dc[offset],
                        &d_gates_[row * 4 * H_], resets(t, b)});
      }
      const int64_t max_panel_width = gemm_.max_vectors * gemm_.panels_at_once * gemm_.lanes;
      for (int64_t unit = 0; unit < H_; unit += max_panel_width) {
        const Units units{unit, std::min(max_panel_width, H_ - unit), H_};
        cell_.prefetch_backward(rows.data(), B_, units);
        const auto sums = multiply(d_gates_next, {w_rows.data(), false}, 4 * H_, unit, units.count);
        cell_.backward(rows.data(), B_, sums.data(), sums.size() / B_, units);
      }
    }
    return dc;
  }

  const GemmKernels& gemm_;
  const CellKernels<T>& cell_;
  const int64_t steps_, B_, H_;
  const GateOrder order_{gemm_, H_};
  const unsigned seed_;
  const oracle::Problem problem_ =
      oracle::random_problem(steps_, B_, H_, {oracle::kDense, false, true}, seed_, rounded<T>);
  const std::vector<T> w_hh_ = converted<T>(problem_.w_hh), zeros_ = std::vector<T>(4 * H_);
  const std::vector<A> state_zeros_ = std::vector<A>(H_);
  std::vector<T> output_ = unwritten<T>(steps_ * B_ * H_);
  std::vector<T> gates_ = unwritten<T>(steps_ * B_ * 4 * H_), d_gates_ = gates_;
  std::vector<A> cells_ = unwritten<A>(steps_ * B_ * H_);
};

// Checks that a NaN in x_gates gives NaN, and that an infinity shuts or opens the gates.
template <typename T>
void check_special(const CellKernels<T>& cell, int64_t H) {
  using A = State_t<T>;
  for (const double x : {double(NAN), double(INFINITY), -double(INFINITY)}) {
    const std::vector<A> x_gates(4 * H, from_double<A>(x)), c_prev(H, A(0.5)), sums(4 * H, A(1));
    std::vector<A> c(H);
    std::vector<T> gates(4 * H), h(H);
    const ForwardRow<T> row{x_gates.data(), gates.data(), c_prev.data(), c.data(), h.data()};
    cell.forward(&row, 1, {sums.data(), 4 * H, nullptr, H}, {0, H, H});
    for (int64_t u = 0; u < H; ++u)
      if (std::isnan(x))
        check(std::isnan(c[u]) && std::isnan(to_double(h[u])), "c and h of NaN: ", c[u], ", ",
              to_double(h[u]));
      else
        check(c[u] == (x > 0 ? 1.5 : 0) && to_double(gates[2 * H + u]) == (x > 0 ? 1 : -1),
              "c and g of ", x, ": ", c[u], ", ", to_double(gates[2 * H + u]));
  }
}

// A table may lack the stepwise kernels of a 16-bit dtype. Then the engine converts to float32.
template <typename T, typename A>
bool has_stepwise_kernels(const RowKernels<T, A>& kernels) {
  return static_cast<const RowKernel<ForwardStep<T, A>>&>(kernels).run;
}

// Checks a layer of the stepwise engine and returns the bytes of its results. Each call of a kernel
// computes `units_per_call` units.
template <typename T, typename A>
Bytes run_steps(const RowKernels<T, A>& kernels, const stepwise::Shape& shape, unsigned seed,
                int64_t units_per_call) {
  return stepwise::run<T, A>(shape, seed, [&](const auto& step) {
    using StepOf = std::decay_t<decltype(step)>;
    for (int64_t b = 0; b < step.rows; ++b)
      for (int64_t u = 0; u < shape.H; u += units_per_call)
        static_cast<const RowKernel<StepOf>&>(kernels).run(step, b, u,
                                                           std::min(u + units_per_call, shape.H));
  });
}

// Returns the GEMM kernels of a table for training with the dtype T, or nullptr.
template <typename T>
const GemmKernels* gemm_of(const KernelTable& table) {
  CpuMachine machine;
  machine.gemms = table.gemms;
  return machine.training_gemm(dtype_of_type<T>);
}

// Adds a case: all instruction sets with fused multiply-add give the same bits, because the source
// and not the compiler says which multiply-adds are fused.
template <typename T>
void add_comparison() {
  testing::Case(testing::text("cells/same bits/", testing::name_of<T>()), [] {
    std::vector<KernelTable> tables = testing::tables();
    std::erase_if(tables, [](const auto& t) { return t.target == std::string("baseline"); });
    for (const int64_t H : {3, 37})
      for (size_t i = 1; i < tables.size(); ++i) {
        const Kernels<T>&a = tables[0], &b = tables[i];
        const auto *const gemm_a = gemm_of<T>(tables[0]), *const gemm_b = gemm_of<T>(tables[i]);
        const std::string where = testing::text(tables[i].target, ", H ", H);
        const Shape shape{4, 3, H};
        const stepwise::Shape resets{4, 3, H, oracle::kDense, false, true};
        if (has_stepwise_kernels(a.row_kernels) && has_stepwise_kernels(b.row_kernels))
          check(run_steps(a.row_kernels, resets, 1, H) == run_steps(b.row_kernels, resets, 1, H),
                where, ": stepwise");
        if (gemm_a && gemm_b)
          check(TiledLayer<T>(*gemm_a, *a.cell_kernels, shape, 1).run() ==
                    TiledLayer<T>(*gemm_b, *b.cell_kernels, shape, 1).run(),
                where, ": tiled");
      }
  });
}

template <typename T>
void add_cases(const KernelTable& table) {
  const Kernels<T>& kernels = table;
  const std::string group = "cells/", dtype = std::string("/") + testing::name_of<T>() + "/";
  const auto row_kernels = kernels.row_kernels;
  if (has_stepwise_kernels(row_kernels))
    testing::Case(group + table.target + dtype + "a layer of the stepwise engine", [row_kernels] {
      unsigned seed = 0;
      for (const int64_t H : {1, 3, 4, 16, 37})
        for (const auto form : {oracle::kDense, oracle::kLengths}) {
          const stepwise::Shape shape{3, 3, H, form, H % 2 == 0, true};
          const Bytes whole = run_steps(row_kernels, shape, ++seed, H);
          check(whole == run_steps(row_kernels, shape, seed, 1), "H ", H,
                ": the bits of a unit depend on the other units");
        }
    });
  const GemmKernels* const gemm = gemm_of<T>(table);
  if (!gemm) return;
  const std::string tiled = group + gemm->instruction_set + dtype;
  testing::Case(tiled + "a layer of the tiled engine", [gemm, kernels] {
    unsigned seed = 0;
    for (const int64_t H : {1, 3, 4, 7, 16, 37, 70})
      TiledLayer<T>(*gemm, *kernels.cell_kernels, {4, int64_t(1 + H % 7), H}, ++seed).run();
  });
  testing::Case(tiled + "NaN and infinity",
                [gemm, kernels] { check_special(*kernels.cell_kernels, gemm->lanes); });
}

const bool added = [] {
  for (const KernelTable& table : testing::tables()) {
    add_cases<float>(table), add_cases<double>(table);
    add_cases<bfloat16>(table), add_cases<float16>(table);
  }
  add_comparison<float>(), add_comparison<double>();
  add_comparison<bfloat16>(), add_comparison<float16>();
  return true;
}();

}  // namespace
