// The persistent engine against the oracle: every arithmetic, kind of batch, tiling and schedule.
#include "persistent_run.h"

namespace {

using namespace persistent;

// Adds the cases of one arithmetic. allow_tf32 matters only for float32.
template <typename T>
void add(bool allow_tf32) {
  const std::string prefix = text("persistent/", allow_tf32 ? "tf32" : name_of<T>(), "/");
  const bool has_wide_tiles = compiled_tiles<T>(allow_tf32).back()[1] == 16;
  const auto add_shape = [&](const std::string& name, const Shape& shape, int seeds = 2) {
    Case(prefix + name, [=] {
      for (simt::seed() = 1; simt::seed() <= unsigned(seeds); ++simt::seed())
        Run<T>(shape, simt::seed(), allow_tf32).check_both();
    });
  };
  // T, B, H, form, directions, reverse, reset, units, row tile, row groups, has_order
  add_shape("one step", {1, 2, 8});
  add_shape("two blocks of units", {4, 3, 16});
  add_shape("odd sizes", {3, 5, 13, kDense, 1, false, false, 8, 8, 2});
  add_shape("reverse, 16 units", {3, 3, 40, kDense, 1, true, false, 16, 8, 1});
  add_shape("several passes", {3, 19, 12, kDense, 1, false, false, 8, 8, 2}, 1);
  add_shape("two directions, packed", {5, 5, 16, kPacked, 2});
  add_shape("two directions, lengths, resets", {4, 6, 11, kLengths, 2, false, true});
  add_shape("lengths sorted by a table", {4, 9, 16, kLengths, 1, true, false, 8, 8, 2, true});
  add_shape("resets", {4, 4, 16, kDense, 1, false, true});
  add_shape("deep", {2, 2, 136, kDense, 1, false, false, 32, 8, 1}, 1);
  // Rows so long that in backward each warp loads its chunks (kChunkBytes) in several groups.
  add_shape("very deep", {2, 2, 520, kDense, 1, true, false, 32, 8, 1}, 1);
  if (has_wide_tiles) {
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
      s.row_tile = has_wide_tiles ? 8 << draw(0, 1) : 8;
      s.row_groups = draw(1, std::min(3, s.B));
      s.has_order = s.form == kLengths && draw(0, 1);
      simt::seed() = n;
      try {
        Run<T>(s, n, allow_tf32).check_both();
      } catch (const std::exception& error) {
        throw testing::Failure(testing::text("n ", n, " T ", s.T, " B ", s.B, " H ", s.H, " form ",
                                             s.form, " reset ", s.reset, ": ", error.what()));
      }
    }
  });

  // The bits of a row do not depend on the tiling.
  Case(prefix + "same bits for every tiling", [=] {
    simt::seed() = 1;
    const auto bits_of = [&](int units, int tile, int groups) {
      Shape shape{3, 17, 40, kPacked, 1, false, false, units, tile, groups};
      Run<T> run(shape, 7, allow_tf32);
      run.forward();
      run.backward();
      return run.bits();
    };
    const auto expected = bits_of(8, 8, 1);
    for (const auto& [units, tile] : compiled_tiles<T>(allow_tf32))
      for (int groups : {1, 2}) {
        const bool is_same = bits_of(units, tile, groups) == expected;
        check(is_same, "differs: ", units, " units, tile ", tile, ", ", groups, " row groups");
      }
  });

  Case(prefix + "nothing saved, no gradient of the state", [=] {
    Run<T> all({4, 3, 16}, 3, allow_tf32), less({4, 3, 16}, 3, allow_tf32);
    const auto &a = all.buffers.direction[0], &b = less.buffers.direction[0];
    const auto x_gates = b.gates, d_h_n = b.d_h;
    all.forward();
    less.forward(false);
    check(bytes_of(all.buffers.output) == bytes_of(less.buffers.output), "output differs");
    check(bytes_of(x_gates) == bytes_of(b.gates), "gates were written");
    check(std::isnan(b.cells[0]), "cells were written");
    less.buffers.direction[0].gates = a.gates, less.buffers.direction[0].cells = a.cells;
    all.backward();
    less.backward(false);
    check(bytes_of(a.d_gates) == bytes_of(b.d_gates), "d_gates differ");
    check(bytes_of(d_h_n) == bytes_of(b.d_h), "d_h was written");
  });

  // A NaN with the bits of unwritten memory must not let another block wait forever.
  Case(prefix + "NaN travels", [=] {
    Run<T> run({3, 3, 16}, 1, allow_tf32);
    auto& b = run.buffers.direction[0];
    std::fill(b.gates.begin(), b.gates.end(), T(std::nanf("")));
    b.h_0 = unwritten<T>(b.h_0.size());
    run.forward();
    run.backward();
    for (T y : run.buffers.output) check(std::isnan(to_double(y)), "output is not NaN");
    for (T d : run.unpadded(b.d_gates, run.exchange_width(true)))
      check(std::isnan(to_double(d)), "d_gates is not NaN");
  });

  // After one step each output is the exact output rounded to nearest, because sums are in float32.
  if (sizeof(T) == 4) return;
  Case(prefix + "rounds to nearest", [] {
    Run<T> run({1, 3, 64}, 1, false);
    run.forward();
    const auto exact = oracle::solve(run.problems[0]).output;
    for (size_t i = 0; i < exact.size(); ++i) {
      const double last_place = std::ldexp(1, std::ilogb(exact[i]) - of_dtype<T>(52, 23, 7, 10));
      check(std::fabs(to_double(run.buffers.output[i]) - exact[i]) < 0.51 * last_place,
            to_double(run.buffers.output[i]), " is not ", exact[i], " rounded");
    }
  });
}
const bool added =
    (add<float>(false), add<float>(true), add<bfloat16>(false), add<float16>(false), true);

// In every tile, f c + i g is computed as fma(f, c, i g): the compiler does not choose.
const Case fused_sum("persistent/the cell is fused in one way", [] {
#if defined(FASTLSTM_EMULATOR)  // `fused` may round twice, if the CPU's baseline has no FMA
  const auto multiply_add = [](float x, float y, float sum) { return fused(x, y, sum); };
#else
  const auto multiply_add = [](float x, float y, float sum) { return std::fma(x, y, sum); };
#endif
  for (const bool allow_tf32 : {false, true})
    for (const auto& [units, rows] : compiled_tiles<float>(allow_tf32)) {
      Run<float> run({1, 9, 40, kDense, 1, false, false, units, rows, 1}, 1, allow_tf32);
      run.forward();
      const auto& b = run.buffers.direction[0];
      for (size_t i = 0; i < b.cells.size(); ++i) {
        const float* const gate = &b.gates[i / 40 * 160 + i % 40];
        const float c_0 = static_cast<float>(run.problems[0].c_0[i]);
        check(b.cells[i] == multiply_add(gate[40], c_0, gate[0] * gate[80]), "c of tile ", units,
              "x", rows);
      }
    }
});

// Both factors of a product are rounded to the nearest TF32 value.
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

const Case upload("persistent/upload of host values", [] {
  for (int64_t count : {0, 1, 510, 511, 2000}) {
    std::vector<int64_t> host(count), device(count + 1, -1);
    std::iota(host.begin(), host.end(), int64_t{1} << 40);
    check(launch_upload(host.data(), count, device.data(), nullptr) == cudaSuccess, "launch");
    check(std::equal(host.begin(), host.end(), device.begin()) && device[count] == -1, count,
          " values");
  }
});

}  // namespace
