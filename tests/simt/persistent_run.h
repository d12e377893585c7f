// Runs the persistent engine on random data and compares the results with the oracle.
#pragma once
#include <runtime.h>  // from this folder, tests/ptx or tests/gpu

#include <algorithm>
#include <array>
#include <cstring>
#include <functional>
#include <numeric>

#include "../../csrc/cuda/persistent.h"
#include "harness.h"
#include "oracle.h"

namespace persistent {

using namespace fastlstm;
using namespace testing;
using oracle::Form, oracle::kDense, oracle::kLengths, oracle::kPacked;

struct Shape {
  int T, B, H;
  Form form = kDense;
  int directions = 1;
  bool reverse = false;  // whether a single direction goes backward in time
  bool reset = false;
  int units = 8, row_tile = 8, row_groups = 1;  // the tiling, see plan.h
  bool has_order = false;  // whether the kernel gets a table of the rows sorted by length
};

template <typename T>
Dtype dtype_of() {
  return of_dtype<T>(Dtype::kFloat64, Dtype::kFloat32, Dtype::kBFloat16, Dtype::kFloat16);
}

// {units, rows} of every tile that is compiled for T; allow_tf32 matters only for float32.
template <typename T>
std::vector<std::array<int, 2>> compiled_tiles(bool allow_tf32) {
  std::vector<std::array<int, 2>> tiles;
  for (int units : {8, 16, 32})
    for (int rows : {8, 16})
      if (is_compiled(std::is_same_v<T, float> && !allow_tf32, units, rows))
        tiles.push_back({units, rows});
  return tiles;
}

// Everything that a launch reads and writes, in the layout of the op. R is the number of flat rows:
// position (t, b) is the flat row offsets[t] + b.
template <typename T>
struct Buffers {
  std::vector<int64_t> rows, offsets;  // [T] rows of each step, [T] its first flat row
  std::vector<int64_t> order;          // [B], the rows sorted by length
  int64_t flat_rows;                   // R
  std::vector<T> output;               // [R,directions * H]
  struct Direction {
    std::vector<T> w_hh, h_0, gates, h_n, d_gates, d_h;
    std::vector<T> exchange;  // h with padded rows; empty if blocks can exchange h through `output`
    std::vector<float> c_0, cells, c_n, d_c, d_cells;
  };
  std::vector<Direction> direction;
  std::vector<T> d_output;
};

// A problem of each direction, and the launches that solve it.
template <typename T>
struct Run {
  Shape shape;
  std::vector<oracle::Problem> problems;
  std::vector<int64_t> lengths;  // as the kernels get them, which clamp them to 0 and T
  Buffers<T> buffers;
  CudaTask task;
  uint32_t wait_limit = runtime::kWaitLimit;
  int missing_blocks = 0;  // how many blocks of the units are not launched

  Run(const Shape& shape, unsigned seed, bool allow_tf32)
      : shape(shape),
        task{shape.H, shape.B, shape.T, shape.directions, dtype_of<T>(), allow_tf32, false} {
    runtime::state().shared_bytes = 1 << 20;  // enough for tiles that are too large for a GPU
    for (int d = 0; d < shape.directions; ++d)
      problems.push_back(oracle::random_problem(shape.T, shape.B, shape.H,
                                                {shape.form, d == 1 || shape.reverse, shape.reset},
                                                seed, rounded<T>, d));
    const auto& length = problems[0].length;
    for (int64_t n : length) lengths.push_back(n == 0 ? -3 : n == shape.T ? shape.T + 9 : n);
    for (int64_t t = 0, offset = 0; t < shape.T; ++t) {
      const int64_t rows = problems[0].rows(t);
      buffers.rows.push_back(rows);
      buffers.offsets.push_back(offset);
      offset += rows;
      buffers.flat_rows = offset;
    }
    buffers.order.resize(shape.B);
    std::iota(buffers.order.begin(), buffers.order.end(), 0);
    std::stable_sort(buffers.order.begin(), buffers.order.end(),
                     [&](int64_t x, int64_t y) { return length[x] > length[y]; });
    buffers.output = unwritten<T>(buffers.flat_rows * shape.directions * shape.H);
    for (const auto& p : problems) {
      typename Buffers<T>::Direction d;
      d.w_hh = converted<T>(p.w_hh);
      d.h_0 = d.h_n = converted<T>(p.h_0);
      d.h_0 = padded(d.h_0, exchange_width(false));
      d.c_0 = d.c_n = converted<float>(p.c_0);
      d.gates = flat<T>(p.x_gates, 4 * shape.H);
      d.cells = unwritten<float>(buffers.flat_rows * shape.H);
      d.d_gates = unwritten<T>(buffers.flat_rows * 4 * exchange_width(true));
      d.d_h = converted<T>(p.d_h_n);
      d.d_c = converted<float>(p.d_c_n);
      d.d_cells = flat<float>(p.d_cells, shape.H);
      if (exchange_width(false) != shape.H)
        d.exchange = unwritten<T>(buffers.flat_rows * shape.directions * exchange_width(false));
      buffers.direction.push_back(d);
    }
    buffers.d_output = unwritten<T>(buffers.output.size());
    for (int d = 0; d < shape.directions; ++d) {
      const auto rows = flat<T>(problems[d].d_output, shape.H);
      for (int64_t r = 0; r < buffers.flat_rows; ++r)
        std::copy(&rows[r * shape.H], &rows[r * shape.H] + shape.H,
                  &buffers.d_output[(r * shape.directions + d) * shape.H]);
    }
  }

  // The padded width of a row that blocks exchange: h in forward, one gate's gradient in backward.
  int64_t exchange_width(bool backward) const {
    CudaTask padded = task;
    padded.backward = backward;
    return padded.exchange_width();
  }
  // Pads each row of H values with zeros to `width` values.
  std::vector<T> padded(const std::vector<T>& rows, int64_t width) const {
    std::vector<T> out(rows.size() / shape.H * width, T(0.0f));
    for (size_t i = 0; i < rows.size(); ++i) out[i / shape.H * width + i % shape.H] = rows[i];
    return out;
  }
  // Removes the padding, which must be zero.
  std::vector<T> unpadded(const std::vector<T>& rows, int64_t width) const {
    std::vector<T> out;
    for (size_t i = 0; i < rows.size(); ++i) {
      if (int64_t(i) % width < shape.H)
        out.push_back(rows[i]);
      else
        check(to_double(rows[i]) == 0, "the padding after a row is not 0");
    }
    return out;
  }

  // Converts the oracle's layout [T,B,size] to the kernels' layout [R,size].
  template <typename To>
  std::vector<To> flat(const oracle::Values& padded, int64_t size) const {
    std::vector<To> out;
    for (int64_t t = 0; t < shape.T; ++t)
      for (int64_t i = 0; i < buffers.rows[t] * size; ++i)
        out.push_back(from_double<To>(padded[t * shape.B * size + i]));
    return out;
  }

  Sequence sequence() {
    const auto* const length = shape.form == kDense ? nullptr : lengths.data();
    const auto* const offsets = shape.form == kPacked ? buffers.offsets.data() : nullptr;
    const auto* const order = shape.has_order ? buffers.order.data() : nullptr;
    const auto* const resets = reinterpret_cast<const bool*>(problems[0].reset.data());
    return {shape.T,   shape.B, shape.H, length, offsets, order, shape.reset ? resets : nullptr,
            wait_limit};
  }

  Tiling tiling() const {
    Tiling t = make_tiling(task, shape.units, shape.row_tile, shape.row_groups, shape.directions);
    t.unit_blocks -= missing_blocks;
    return t;
  }

  void forward(bool save = true) {
    task.backward = false;
    ForwardLaunch<T> args{};
    args.sequence = sequence();
    for (int d = 0; d < shape.directions; ++d) {
      auto& b = buffers.direction[d];
      T* const output = buffers.output.data() + d * shape.H;
      T* const exchange = b.exchange.empty() ? output : &b.exchange[d * exchange_width(false)];
      float* const cells = save ? b.cells.data() : nullptr;
      args.direction[d] = {b.w_hh.data(), b.h_0.data(), b.gates.data(), output,
                           exchange,      cells,        b.h_n.data(),   b.c_n.data()};
    }
    args.first_reverse = shape.reverse;
    args.save_gates = save;
    args.output_stride = shape.directions * shape.H;
    args.exchange_stride = shape.directions * exchange_width(false);
    check(launch_walk(args, tiling(), nullptr) == cudaSuccess, "launch");
  }

  void backward(bool state_needs_grad = true) {
    task.backward = true;
    BackwardLaunch<T> args{};
    args.sequence = sequence();
    for (int d = 0; d < shape.directions; ++d) {
      auto& b = buffers.direction[d];
      const T* const d_output = buffers.d_output.data() + d * shape.H;
      args.direction[d] = {b.w_hh.data(),    b.c_0.data(), b.gates.data(),
                           b.cells.data(),   d_output,     b.d_cells.data(),
                           b.d_gates.data(), b.d_h.data(), b.d_c.data()};
    }
    args.first_reverse = shape.reverse;
    args.state_needs_grad = state_needs_grad;
    args.d_output_stride = shape.directions * shape.H;
    check(launch_walk(args, tiling(), nullptr) == cudaSuccess, "launch");
  }

  void check_both() {
    forward();
    backward();
    compare();
  }

  // The bytes of all results of the first direction.
  Bytes bits() const {
    const auto& d = buffers.direction[0];
    return bytes_of(buffers.output, d.gates, d.cells, d.h_n, d.c_n,
                    unpadded(d.d_gates, exchange_width(true)), d.d_h, d.d_c);
  }

  // Checks all results of forward and backward against the oracle.
  void compare() const {
    const double unit_roundoff = task.allow_tf32 ? 0x1p-11 : roundoff<T>();
    for (int d = 0; d < shape.directions; ++d) {
      const auto solution = oracle::solve(problems[d]);
      const auto& b = buffers.direction[d];
      std::vector<T> output;
      for (int64_t r = 0; r < buffers.flat_rows; ++r)
        for (int64_t j = 0; j < shape.H; ++j)
          output.push_back(buffers.output[(r * shape.directions + d) * shape.H + j]);
      check_close(output, flat<double>(solution.output, shape.H), unit_roundoff, 16, "output");
      check_close(b.h_n, solution.h_n, unit_roundoff, 16, "h_n");
      check_close(b.c_n, solution.c_n, unit_roundoff, 16, "c_n");
      check_close(b.gates, flat<double>(solution.gates, 4 * shape.H), unit_roundoff, 16, "gates");
      auto cells = b.cells;
      for (int64_t t = 0; t < shape.T; ++t)
        for (int64_t i = 0; i < buffers.rows[t] * shape.H; ++i) {
          float& c = cells[buffers.offsets[t] * shape.H + i];
          check(!std::isnan(c), "cells at a dead position are undefined");
          if (!problems[d].alive(t, i / shape.H)) c = 0;
        }
      check_close(cells, flat<double>(solution.cells, shape.H), unit_roundoff, 8, "cells");
      check_close(unpadded(b.d_gates, exchange_width(true)),
                  flat<double>(solution.d_gates, 4 * shape.H), unit_roundoff, 32, "d_gates");
      check_close(b.d_h, solution.d_h_0, unit_roundoff, 32, "d_h_0");
      check_close(b.d_c, solution.d_c_0, unit_roundoff, 32, "d_c_0");
    }
  }
};

}  // namespace persistent
