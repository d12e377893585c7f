// The projection of h (Sak et al., 2014): h_t = W_hr (o tanh(c)). It gives a step a second phase:
// forward after the cells, once o tanh(c) of all units is there, and backward before them.
#pragma once
#include <algorithm>
#include <utility>
#include <vector>

#include "core/flat_rows.h"
#include "core/operators.h"
#include "cpu/gemm/encoded_rows.h"
#include "cpu/gemm/matrix.h"
#include "cpu/gemm/weight_gradient_gemm.h"
#include "cpu/plan.h"
#include "cpu/rows.h"
#include "cpu/stages/cells.h"
#include "equations/lstm_math.h"

namespace fastlstm {

template <typename T>
class ProjectionForward {
  using A = State_t<T>;

 public:
  ProjectionForward(const DirectionRows& rows, int64_t hidden_size, const ThreadGrid& grid,
                    const Matrix& w_hr)
      : rows_(rows),
        grid_(grid),
        hidden_size_(hidden_size),
        w_hr_(w_hr),
        unprojected_(scratch<T>(rows.all().batch() * hidden_size_)),
        encoded_(w_hr.gemm(), grid.workers() * rows.all().batch(), hidden_size_),
        from_(grid.workers(), std::vector<const void*>(rows.all().batch())),
        to_(grid.workers(), std::vector<void*>(rows.all().batch())) {}

  // The memory in which the cells of a row write o tanh(c).
  T* unprojected(int64_t row) const { return unprojected_.data<T>() + row * hidden_size_; }

  // h_t of a worker's rows and columns, to where h_of(t, row) points.
  void forward(int64_t t, const Worker& worker, const auto& h_of) {
    auto& from = from_[worker.index];
    auto& to = to_[worker.index];
    int64_t count = 0;
    for (int64_t row = worker.row_group; row < rows_.all().live(t); row += grid_.row_groups) {
      from[count] = encoded_.encode(unprojected(row), worker.index * rows_.all().batch() + count);
      to[count++] = h_of(t, row);
    }
    serial_gemm(from, count, w_hr_, w_hr_.panels_of_group(worker.unit_group, grid_.unit_groups),
                to);
  }

 private:
  const DirectionRows& rows_;
  ThreadGrid grid_;
  int64_t hidden_size_;
  const Matrix& w_hr_;
  Scratch unprojected_;
  EncodedRows<T> encoded_;
  std::vector<std::vector<const void*>> from_;
  std::vector<std::vector<void*>> to_;
};

template <typename T>
class ProjectionBackward {
  using A = State_t<T>;

 public:
  // gates [R,4H] and cells [R,H] of the direction.
  ProjectionBackward(const LayerCall& layer, const CpuPlan& plan, const DirectionRows& rows,
                     int64_t d, const Tensor& gates, const Tensor& cells)
      : plan_(plan),
        rows_(rows),
        hidden_size_(layer.hidden_size.expect_int()),
        output_size_(layer.output_size.expect_int()),
        w_hr_(matrix_of(*plan.gemm, layer.directions[d].w_hr.contiguous(), false,
                        plan.grid.unit_groups, plan.w_hh)),
        d_h_(scratch<T>(plan.chunk_steps * rows.all().batch() * output_size_)),
        encoded_(*plan.gemm, plan.grid.workers() * rows.all().batch(), output_size_),
        grad_w_hr_(at::empty({output_size_, hidden_size_}, layer.state_options())) {
    const Tensor o = gates.narrow(1, 3 * hidden_size_, hidden_size_).to(cells.scalar_type());
    unprojected_ = hidden_state(o, cells).to(layer.input.scalar_type());
  }

  const Matrix& w_hr() const { return w_hr_; }
  const Tensor& gradient() const { return grad_w_hr_; }

  // dL/dh_t of a row in full, for a chunk of steps.
  T* d_h(int64_t t, int64_t row) const {
    const int64_t k = rows_.step_back(t);  // its own inverse
    return d_h_.data<T>() + (k % plan_.chunk_steps * rows_.all().batch() + row) * output_size_;
  }

  // The first phase of a step: d_h of a worker's rows and columns, from what comes from outside
  // and from the next step through W_hh.
  void compute_d_h(const BackwardStepRows<T>& step, const Matrix& w_hh, const Worker& worker,
                   const void* encoded_zeros) const {
    const Range panels = w_hh.panels_of_group(worker.unit_group, plan_.grid.unit_groups);
    const auto [begin, end] = w_hh.columns(panels);
    const auto next = step.gemm_rows.begin();
    const auto d_h = [&](int64_t r) { return static_cast<T*>(step.d_h[r]); };
    if (std::any_of(next, next + step.count, [&](const void* row) { return row != encoded_zeros; }))
      serial_gemm(step.gemm_rows, step.count, w_hh, panels, step.d_h);
    else  // an infinite W_hh must not make a NaN of them either
      for (int64_t r = 0; r < step.count; ++r) std::fill(d_h(r) + begin, d_h(r) + end, T(A(0)));
    // The gradients from outside last: the small terms are added to each other first.
    for (int64_t r = 0; r < step.count; ++r) {
      const BackwardRow<T>& row = step.cells[r];
      for (int64_t n = begin; n < end; ++n)
        d_h(r)[n] = T(A(d_h(r)[n]) + (A(row.d_output[n]) + A(row.d_h_n[n])));
    }
  }

  // The rest of a step starts from d_h, through W_hr; nothing else comes from outside. Returns d_h
  // as the product takes it, in place of gemm_rows.
  const void* const* encode_d_h(BackwardStepRows<T>& step, const Worker& worker,
                                const T* zeros) const {
    for (int64_t r = 0; r < step.count; ++r) {
      step.gemm_rows[r] = encoded_.encode(static_cast<const T*>(step.d_h[r]),
                                          worker.index * rows_.all().batch() + r);
      BackwardRow<T>& row = step.cells[r];
      row.d_output = row.d_h_n = zeros;
    }
    return step.gemm_rows.data();
  }

  // The share of a chunk's steps in W_hr's gradient.
  void add(const Range& chunk) {
    const auto d_h_rows = rows_.live<const void*>(
        chunk, /*back=*/true, [&](int64_t t, int64_t row) { return d_h(t, row); });
    auto hidden_rows = rows_.live<const void*>(chunk, /*back=*/true, [&](int64_t t, int64_t row) {
      return const_data<T>(unprojected_) + rows_.all().flat(t, row) * hidden_size_;
    });
    weight_gradient_gemm(*plan_.gemm, d_h_rows, output_size_,
                         {{std::move(hidden_rows), hidden_size_, data<A>(grad_w_hr_)}}, nullptr,
                         chunk.begin > 0);
  }

 private:
  const CpuPlan& plan_;
  const DirectionRows& rows_;
  int64_t hidden_size_, output_size_;
  Matrix w_hr_;
  Scratch d_h_;
  EncodedRows<T> encoded_;
  Tensor unprojected_, grad_w_hr_;
};

}  // namespace fastlstm
