// The persistent engine against the oracle: all kinds of arithmetic, forms of input and divisions
// of the work, with several orders of the fibers.
#include <algorithm>
#include <array>
#include <cstring>
#include <numeric>

#include "../../csrc/cuda/persistent.h"
#include "harness.h"
#include "oracle.h"

namespace {

using namespace fastlstm;
using testing::Case;
using testing::check;
using testing::check_close;
using testing::from_double;
using testing::to_double;
using testing::unwritten;

enum Form { kDense, kPacked, kLengths };

struct Shape {
  int T, B, H;
  Form form = kDense;
  int directions = 1;
  bool reverse = false;  // of a single direction
  bool reset = false;
  int units = 8, row_tile = 8, row_groups = 1;
  bool order = false;                   // hand over the rows sorted by length
  bool masks = false, zoneout = false;  // recurrent dropout; zoneout of h and c
};

template <typename T>
Dtype dtype_of() {
  return std::is_same_v<T, float>      ? Dtype::kFloat32
         : std::is_same_v<T, bfloat16> ? Dtype::kBFloat16
                                       : Dtype::kFloat16;
}

// Everything that a launch reads and writes, in the layout of the op.
template <typename T>
struct Buffers {
  std::vector<int64_t> rows, offsets, order;  // of step t; flat row of (t, b) = offsets[t] + b
  int64_t flat_rows;
  std::vector<T> output;
  struct Direction {
    std::vector<T> w_hh, h_0, gates, h_n, d_gates, d_h;
    std::vector<T> h_mask, exchange, zoneout_h, zoneout_c;  // exchange: with h_mask only
    std::vector<float> c_0, cells, c_n, d_c, d_cells;
  };
  std::vector<Direction> direction;
  std::vector<T> d_output;
};

std::vector<oracle::Problem> make_problems(const Shape& shape, unsigned seed,
                                           const std::function<double(double)>& round) {
  std::vector<oracle::Problem> problems;
  for (int d = 0; d < shape.directions; ++d) {
    problems.push_back(oracle::random_problem(shape.T, shape.B, shape.H, seed + 100 * d, round));
    auto& p = problems.back();
    p.reverse = d == 1 || shape.reverse;
    std::mt19937 random(seed);  // lengths and resets are the same in both directions
    if (shape.form != kDense)
      for (auto& n : p.length) n = random() % (shape.T + 1);
    p.length[shape.B / 2] = shape.T;
    if (shape.form == kPacked) {
      for (auto& n : p.length) n = std::max<int64_t>(n, 1);
      std::sort(p.length.rbegin(), p.length.rend());
    }
    if (shape.reset)
      for (int i = 0; i < shape.T * shape.B; ++i) p.reset.push_back(random() % 4 == 0);
    const int64_t state = int64_t(shape.B) * shape.H;
    if (shape.masks) p.h_mask = oracle::random_shares(state, seed + d);
    if (shape.zoneout) {
      p.zoneout_h = oracle::random_shares(shape.T * state, seed + 10 + d);
      p.zoneout_c = oracle::random_shares(shape.T * state, seed + 20 + d);
    }
  }
  return problems;
}

template <typename T>
struct Run {
  Shape shape;
  std::vector<oracle::Problem> problems;
  Buffers<T> buffers;
  Task task;

  Run(const Shape& shape, unsigned seed, bool allow_tf32)
      : shape(shape),
        problems(make_problems(shape, seed, [](double x) { return to_double(from_double<T>(x)); })),
        task{shape.H, shape.B, shape.T, shape.directions, dtype_of<T>(), allow_tf32, false, false} {
    auto& b = buffers;
    const auto& length = problems[0].length;
    for (int64_t t = 0, offset = 0; t < shape.T; ++t) {
      const int64_t rows = shape.form == kPacked ? std::count_if(length.begin(), length.end(),
                                                                 [&](int64_t n) { return n > t; })
                                                 : shape.B;
      b.rows.push_back(rows);
      b.offsets.push_back(offset);
      offset += rows;
      b.flat_rows = offset;
    }
    b.order.resize(shape.B);
    std::iota(b.order.begin(), b.order.end(), 0);
    std::stable_sort(b.order.begin(), b.order.end(),
                     [&](int64_t x, int64_t y) { return length[x] > length[y]; });
    b.output = unwritten<T>(b.flat_rows * shape.directions * shape.H);
    for (const auto& p : problems) {
      typename Buffers<T>::Direction d;
      d.w_hh = testing::converted<T>(p.w_hh);
      d.h_0 = d.h_n = testing::converted<T>(p.h_0);
      d.c_0 = d.c_n = testing::converted<float>(p.c_0);
      d.gates = flat<T>(p.x_gates, 4 * shape.H);
      d.cells = unwritten<float>(b.flat_rows * shape.H);
      d.d_gates = unwritten<T>(b.flat_rows * 4 * shape.H);
      d.d_h = testing::converted<T>(p.d_h_n);
      d.d_c = testing::converted<float>(p.d_c_n);
      d.d_cells = flat<float>(p.d_cells, shape.H);
      if (shape.masks) {
        d.h_mask = testing::converted<T>(p.h_mask);
        d.exchange = unwritten<T>(b.output.size());
        for (size_t i = 0; i < d.h_0.size(); ++i) d.h_0[i] = from_double<T>(p.h_0[i] * p.h_mask[i]);
      }
      if (shape.zoneout) {
        d.zoneout_h = flat<T>(p.zoneout_h, shape.H);
        d.zoneout_c = flat<T>(p.zoneout_c, shape.H);
      }
      b.direction.push_back(d);
    }
    b.d_output = unwritten<T>(b.output.size());
    for (int d = 0; d < shape.directions; ++d) {
      const auto one = flat<T>(problems[d].d_output, shape.H);
      for (int64_t r = 0; r < b.flat_rows; ++r)
        std::copy(&one[r * shape.H], &one[r * shape.H] + shape.H,
                  &b.d_output[(r * shape.directions + d) * shape.H]);
    }
  }

  // [T,B,size] of the oracle -> [R,size] as the kernels see it.
  template <typename To>
  std::vector<To> flat(const oracle::Values& padded, int64_t size) const {
    std::vector<To> out;
    for (int64_t t = 0; t < shape.T; ++t)
      for (int64_t i = 0; i < buffers.rows[t] * size; ++i)
        out.push_back(from_double<To>(padded[t * shape.B * size + i]));
    return out;
  }
  oracle::Values flat_values(const oracle::Values& padded, int64_t size) const {
    return flat<double>(padded, size);
  }

  Sequence sequence() {
    return {shape.T,
            shape.B,
            shape.H,
            shape.form == kDense ? nullptr : problems[0].length.data(),
            shape.form == kPacked ? buffers.offsets.data() : nullptr,
            shape.order ? buffers.order.data() : nullptr,
            shape.reset ? reinterpret_cast<const bool*>(problems[0].reset.data()) : nullptr};
  }

  // Zoneout of one state alone is the other with shares of 0.
  Zoneout<T> zones(const typename Buffers<T>::Direction& d) const {
    if (!shape.zoneout) return {};
    return {d.zoneout_h.data(), d.zoneout_c.data(), shape.H, shape.H};
  }

  Tiling tiling() const {
    return make_tiling(task, shape.units, shape.row_tile, shape.row_groups, shape.directions);
  }

  void forward(bool save = true) {
    task.backward = false;
    PersistentForward<T> call{};
    call.sequence = sequence();
    for (int d = 0; d < shape.directions; ++d) {
      auto& b = buffers.direction[d];
      call.direction[d] = {b.w_hh.data(),
                           b.h_0.data(),
                           b.c_0.data(),
                           b.gates.data(),
                           buffers.output.data() + d * shape.H,
                           (shape.masks ? b.exchange : buffers.output).data() + d * shape.H,
                           save ? b.cells.data() : nullptr,
                           b.h_n.data(),
                           b.c_n.data(),
                           shape.masks ? b.h_mask.data() : nullptr,
                           zones(b)};
    }
    call.first_reverse = shape.reverse;
    call.save_gates = save;
    call.output_stride = shape.directions * shape.H;
    check(launch_persistent_forward(call, task, tiling(), nullptr) == cudaSuccess, "launch");
  }

  void backward(bool state_needs_grad = true) {
    task.backward = true;
    PersistentBackward<T> call{};
    call.sequence = sequence();
    for (int d = 0; d < shape.directions; ++d) {
      auto& b = buffers.direction[d];
      call.direction[d] = {b.w_hh.data(),
                           b.c_0.data(),
                           b.gates.data(),
                           b.cells.data(),
                           buffers.d_output.data() + d * shape.H,
                           b.d_cells.data(),
                           b.d_gates.data(),
                           b.d_h.data(),
                           b.d_c.data(),
                           shape.masks ? b.h_mask.data() : nullptr,
                           zones(b)};
    }
    call.first_reverse = shape.reverse;
    call.state_needs_grad = state_needs_grad;
    call.d_output_stride = shape.directions * shape.H;
    check(launch_persistent_backward(call, task, tiling(), nullptr) == cudaSuccess, "launch");
  }

  // Exactly the rows that the walk has used.
  void check_previous_hidden() {
    for (int d = 0; d < shape.directions; ++d) {
      const auto& p = problems[d];
      const auto h_0 = testing::converted<T>(p.h_0);
      auto h_prev = unwritten<T>(buffers.flat_rows * shape.H);
      const int64_t stride = shape.directions * shape.H;
      check(launch_previous_hidden(sequence(), p.reverse, buffers.output.data() + d * shape.H,
                                   stride, h_0.data(),
                                   shape.masks ? buffers.direction[d].h_mask.data() : nullptr,
                                   h_prev.data(), nullptr) == cudaSuccess,
            "launch");
      for (int64_t t = 0; t < shape.T; ++t)
        for (int64_t b = 0; b < buffers.rows[t]; ++b)
          for (int64_t j = 0; j < shape.H; ++j) {
            const int64_t t_prev = p.reverse ? t + 1 : t - 1;
            const bool starts = t == (p.reverse ? p.length[b] - 1 : 0);
            const double expected =
                !p.alive(t, b) || p.resets(t, b) ? 0
                : starts
                    ? p.h_0[b * shape.H + j]
                    : to_double(
                          buffers.output[(buffers.offsets[t_prev] + b) * stride + d * shape.H + j]);
            check(to_double(h_prev[(buffers.offsets[t] + b) * shape.H + j]) ==
                      to_double(from_double<T>(p.mask(b * shape.H + j) * expected)),
                  "h_prev at t ", t, ", row ", b, ", unit ", j);
          }
    }
  }

  void compare(double unit) const {
    for (int d = 0; d < shape.directions; ++d) {
      const auto solution = oracle::solve(problems[d]);
      const auto& b = buffers.direction[d];
      std::vector<T> output;
      for (int64_t r = 0; r < buffers.flat_rows; ++r)
        for (int64_t j = 0; j < shape.H; ++j)
          output.push_back(buffers.output[(r * shape.directions + d) * shape.H + j]);
      check_close(output, flat_values(solution.output, shape.H), unit, 16, "output");
      check_close(b.h_n, solution.h_n, unit, 16, "h_n");
      check_close(b.c_n, solution.c_n, unit, 16, "c_n");
      check_close(b.gates, flat_values(solution.gates, 4 * shape.H), unit, 16, "gates");
      for (int64_t t = 0; t < shape.T; ++t)
        for (int64_t row = 0; row < buffers.rows[t]; ++row) {
          const float* cells = &b.cells[(buffers.offsets[t] + row) * shape.H];
          const double* expected = &solution.cells[(t * shape.B + row) * shape.H];
          if (problems[d].alive(t, row))
            check_close(std::vector<float>(cells, cells + shape.H),
                        oracle::Values(expected, expected + shape.H), unit, 16, "cells");
          else
            check(std::all_of(cells, cells + shape.H, [](float c) { return !std::isnan(c); }),
                  "cells at a dead position are undefined");
        }
      check_close(b.d_gates, flat_values(solution.d_gates, 4 * shape.H), unit, 32, "d_gates");
      check_close(b.d_h, solution.d_h_0, unit, 32, "d_h_0");
      check_close(b.d_c, solution.d_c_0, unit, 32, "d_c_0");
    }
  }
};

template <typename T>
void add(const char* kind, bool allow_tf32, double unit) {
  const std::string prefix = std::string("persistent/") + kind + "/";
  const auto add_shape = [&](const std::string& name, const Shape& shape, int seeds = 2) {
    Case(prefix + name, [=] {
      for (simt::seed() = 1; simt::seed() <= unsigned(seeds); ++simt::seed()) {
        Run<T> run(shape, simt::seed(), allow_tf32);
        run.forward();
        run.backward();
        run.compare(unit);
        run.check_previous_hidden();
      }
    });
  };
  // T, B, H, form, directions, reverse, reset, units, row tile, row groups, order
  add_shape("one step", {1, 2, 8});
  add_shape("two parts", {4, 3, 16});
  add_shape("odd sizes", {3, 5, 13, kDense, 1, false, false, 8, 8, 2});
  add_shape("reverse, wide parts", {3, 3, 40, kDense, 1, true, false, 16, 8, 1});
  add_shape("several passes", {3, 19, 12, kDense, 1, false, false, 8, 8, 2}, 1);
  add_shape("two directions, packed", {5, 5, 16, kPacked, 2});
  add_shape("two directions, lengths, resets", {4, 6, 11, kLengths, 2, false, true});
  add_shape("lengths sorted by a table", {4, 9, 16, kLengths, 1, true, false, 8, 8, 2, true});
  add_shape("resets", {4, 4, 16, kDense, 1, false, true});
  add_shape("deep", {2, 2, 136, kDense, 1, false, false, 32, 8, 1}, 1);
  const auto add_regularized = [&](const std::string& name, Shape shape, bool masks, bool zoneout) {
    shape.masks = masks, shape.zoneout = zoneout;
    add_shape(name, shape);
  };
  add_regularized("recurrent dropout", {4, 3, 16, kDense, 1, false, true}, true, false);
  add_regularized("recurrent dropout, odd, packed", {4, 5, 13, kPacked, 2}, true, false);
  add_regularized("zoneout", {4, 3, 16, kDense, 1, true, true}, false, true);
  add_regularized("zoneout, lengths", {5, 6, 11, kLengths, 2, false, true, 8, 8, 2}, false, true);
  add_regularized("recurrent dropout, zoneout", {4, 11, 16, kPacked, 2}, true, true);
  // More chunks of K than two groups of loads hold.
  add_shape("very deep", {2, 2, 520, kDense, 1, true, false, 32, 8, 1}, 1);
  if (is_compiled(dtype_of<T>() == Dtype::kFloat32 && !allow_tf32, 8, 16)) {
    add_shape("very deep, wide tile", {2, 10, 520, kDense, 1, false, false, 32, 16, 1}, 1);
    add_shape("wide tile", {3, 11, 24, kDense, 1, false, false, 16, 16, 1}, 1);
    add_shape("wide tile, packed", {4, 18, 16, kPacked, 1, true, false, 8, 16, 1}, 1);
  }

  Case(prefix + "random shapes", [=] {
    std::mt19937 random(1);
    const auto draw = [&](int low, int high) {
      return low + static_cast<int>(random() % (high - low + 1));
    };
    for (int n = 0; n < 30; ++n) {
      Shape s{draw(1, 6), draw(1, 20), draw(1, 40)};
      s.form = static_cast<Form>(draw(0, 2));
      s.directions = draw(1, 2);
      s.reverse = s.directions == 1 && draw(0, 1);
      s.reset = s.form != kPacked && draw(0, 1);
      s.units = 8 << draw(0, 2);
      s.row_tile =
          is_compiled(dtype_of<T>() == Dtype::kFloat32 && !allow_tf32, 8, 16) ? 8 << draw(0, 1) : 8;
      s.row_groups = draw(1, std::min(3, s.B));
      s.order = s.form == kLengths && draw(0, 1);
      s.masks = draw(0, 1), s.zoneout = draw(0, 1);
      simt::seed() = n;
      try {
        Run<T> run(s, n, allow_tf32);
        run.forward();
        run.backward();
        run.compare(unit);
        run.check_previous_hidden();
      } catch (const std::exception& error) {
        throw testing::Failure(testing::text("T ", s.T, " B ", s.B, " H ", s.H, " form ", s.form,
                                             " directions ", s.directions, " reverse ", s.reverse,
                                             " reset ", s.reset, " units ", s.units, " row tile ",
                                             s.row_tile, " row groups ", s.row_groups, " masks ",
                                             s.masks, " zoneout ", s.zoneout, ": ", error.what()));
      }
    }
  });

  // A row's result depends neither on how the work is divided nor on the rows beside it.
  Case(prefix + "same bits for every division", [=] {
    simt::seed() = 1;
    Run<T> whole({3, 9, 40, kPacked, 1, false, false, 8, 8, 1}, 7, allow_tf32);
    whole.forward();
    whole.backward();
    for (const auto& [units, tile, groups] : {std::array{16, 8, 2}, {32, 8, 1}, {32, 16, 1}}) {
      if (tile == 16 && whole.task.ffma()) continue;
      Run<T> divided({3, 9, 40, kPacked, 1, false, false, units, tile, groups}, 7, allow_tf32);
      divided.forward();
      divided.backward();
      const auto& a = whole.buffers.direction[0];
      const auto& b = divided.buffers.direction[0];
      const auto same = [&](const auto& x, const auto& y, const char* what) {
        check(!std::memcmp(x.data(), y.data(), x.size() * sizeof x[0]), what, " differs with ",
              units, " units, tile ", tile, ", ", groups, " row groups");
      };
      same(whole.buffers.output, divided.buffers.output, "output");
      same(a.cells, b.cells, "cells");
      same(a.gates, b.gates, "gates");
      same(a.d_gates, b.d_gates, "d_gates");
      same(a.d_h, b.d_h, "d_h_0");
      same(a.d_c, b.d_c, "d_c_0");
    }
  });

  Case(prefix + "nothing saved", [=] {
    Run<T> saving({4, 3, 16}, 3, allow_tf32), sparing({4, 3, 16}, 3, allow_tf32);
    saving.forward();
    const auto x_gates = sparing.buffers.direction[0].gates;
    sparing.forward(false);
    check(!std::memcmp(saving.buffers.output.data(), sparing.buffers.output.data(),
                       sizeof(T) * saving.buffers.output.size()),
          "output differs");
    check(!std::memcmp(x_gates.data(), sparing.buffers.direction[0].gates.data(),
                       sizeof(T) * x_gates.size()),
          "gates were written");
    check(std::isnan(sparing.buffers.direction[0].cells[0]), "cells were written");
  });

  Case(prefix + "no gradient of the state", [=] {
    Run<T> whole({4, 3, 16}, 3, allow_tf32), sparing({4, 3, 16}, 3, allow_tf32);
    whole.forward();
    whole.backward();
    sparing.forward();
    const auto d_h_n = sparing.buffers.direction[0].d_h;
    sparing.backward(false);
    const auto &a = whole.buffers.direction[0], &b = sparing.buffers.direction[0];
    const size_t bytes = sizeof(T) * a.d_gates.size();
    check(!std::memcmp(a.d_gates.data(), b.d_gates.data(), bytes), "d_gates differ");
    check(!std::memcmp(d_h_n.data(), b.d_h.data(), sizeof(T) * d_h_n.size()), "d_h was written");
  });
}
const bool added =
    (add<float>("float32", false, 0x1p-24), add<float>("tf32", true, 0x1p-11),
     add<bfloat16>("bfloat16", false, 0x1p-9), add<float16>("float16", false, 0x1p-11), true);

// Both factors go to the nearest TF32 value, and what is beyond its bits does not survive.
const Case rounds("persistent/tf32 rounds its factors", [] {
  const double eps = 0x1p-11;  // half a last place of TF32 at 1
  Run<float> run({2, 1, 8}, 1, true);
  auto& b = run.buffers.direction[0];
  std::fill(b.w_hh.begin(), b.w_hh.end(), 1 + 1.25f * float(eps));  // -> 1 + 2 eps
  std::fill(b.h_0.begin(), b.h_0.end(), 1 + 0.75f * float(eps));    // -> 1
  std::fill(b.gates.begin(), b.gates.end(), -8.0f);
  run.forward();
  const double pre = -8 + 8 * (1 + 2 * eps);
  check_close(std::vector<float>{b.gates[0]}, {1 / (1 + std::exp(-pre))}, 0x1p-24, 4, "gate");
});

// A NaN whose bits are those of memory that was not written yet must not keep anybody waiting.
template <typename T>
void check_nan_travels() {
  Run<T> run({3, 3, 16}, 1, false);
  auto& b = run.buffers.direction[0];
  b.gates = unwritten<T>(b.gates.size());
  b.h_0 = unwritten<T>(b.h_0.size());
  run.forward();
  run.backward();
  for (T y : run.buffers.output) check(std::isnan(to_double(y)), "output is not NaN");
  for (T d : b.d_gates) check(std::isnan(to_double(d)), "d_gates is not NaN");
}
const Case nan_travels("persistent/NaN travels", [] {
  check_nan_travels<float>();
  check_nan_travels<bfloat16>();
  check_nan_travels<float16>();
});

const Case upload("persistent/upload of host values", [] {
  for (int64_t count : {0, 1, 496, 497, 2000}) {
    std::vector<int64_t> host(count), device(count + 1, -1);
    std::iota(host.begin(), host.end(), int64_t{1} << 40);
    check(launch_upload(host.data(), count, device.data(), nullptr) == cudaSuccess, "launch");
    check(std::equal(host.begin(), host.end(), device.begin()) && device[count] == -1, count,
          " values");
  }
});

const Case refused("persistent/refused where the blocks do not fit", [] {
  Run<float> run({2, 2, 32}, 1, false);
  simt::resident_blocks() = 3;
  bool failed = false;
  try {
    run.forward();
  } catch (const testing::Failure&) {
    failed = true;
  }
  simt::resident_blocks() = 1024;
  check(failed && std::isnan(run.buffers.output[0]), "the launch must be refused and nothing run");
});

}  // namespace
