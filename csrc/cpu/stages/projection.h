// The projection h_t = W_hr (o * tanh(c)) of Sak et al. (2014), for a worker's rows and units.
//
// It needs o * tanh(c) of all units, so it is a second phase of each step: after the cells in the
// forward pass, before the cells in the backward pass.
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

// The projection of one direction in the forward pass.
template <typename T>
class ProjectionForward {
 public:
  ProjectionForward(const DirectionRows& rows, int64_t hidden_size, const ThreadGrid& grid,
                    const Matrix& w_hr)  // W_hr^T [H,P]
      : sorted_rows_(rows.sorted()),
        grid_(grid),
        hidden_size_(hidden_size),
        w_hr_(w_hr),
        unprojected_(scratch<T>(sorted_rows_.batch() * hidden_size_)),
        encoded_(w_hr.gemm(), grid.workers() * sorted_rows_.batch(), hidden_size_),
        gemm_rows_(grid.workers(), std::vector<const void*>(sorted_rows_.batch())),
        h_(grid.workers(), std::vector<void*>(sorted_rows_.batch())) {}

  // The memory [H] to which the cells of a row write o * tanh(c).
  T* unprojected(int64_t row) const { return unprojected_.data<T>() + row * hidden_size_; }

  // Computes h_t of a worker's rows and columns. It writes the row [P] to which h_of(t, row)
  // points.
  void run(int64_t t, const Worker& worker, const auto& h_of) {
    auto& from = gemm_rows_[worker.index];
    auto& to = h_[worker.index];
    int64_t count = 0;
    for (int64_t row = worker.row_group; row < sorted_rows_.live_rows(t); row += grid_.row_groups) {
      from[count] = encoded_.encode(unprojected(row), worker.index * sorted_rows_.batch() + count);
      to[count++] = h_of(t, row);
    }
    serial_gemm(from, count, w_hr_, w_hr_.panels_of_group(worker.unit_group, grid_.unit_groups),
                to);
  }

 private:
  const SortedRows& sorted_rows_;
  ThreadGrid grid_;
  int64_t hidden_size_;
  const Matrix& w_hr_;
  Scratch unprojected_;     // [B,H]
  EncodedRows<T> encoded_;  // o * tanh(c) as the GEMM takes it, [workers,B] rows
  std::vector<std::vector<const void*>> gemm_rows_;  // [workers,B] encoded rows
  std::vector<std::vector<void*>> h_;                // [workers,B] rows [P] for h_t
};

// The projection of one direction in the backward pass, and the gradient of W_hr.
template <typename T>
class ProjectionBackward {
  using A = State_t<T>;

 public:
  // gates [R,4H] and cells [R,H] of direction d, saved by the forward pass. R: Sizes::flat_rows.
  ProjectionBackward(const LayerCall& layer, const CpuPlan& plan, const DirectionRows& rows,
                     int64_t d, const Tensor& gates, const Tensor& cells)
      : plan_(plan),
        rows_(rows),
        hidden_size_(layer.hidden_size.expect_int()),
        output_size_(layer.output_size.expect_int()),
        w_hr_(matrix_of(*plan.gemm, layer.directions[d].w_hr.contiguous(), false,
                        plan.grid.unit_groups, plan.w_hh)),
        d_h_(scratch<T>(plan.chunk_steps * batch() * output_size_)),
        encoded_(*plan.gemm, plan.grid.workers() * batch(), output_size_),
        grad_w_hr_(at::empty({output_size_, hidden_size_}, layer.state_options())) {
    const Tensor o = gates.narrow(1, 3 * hidden_size_, hidden_size_).to(cells.scalar_type());
    unprojected_ = hidden_state(o, cells).to(layer.input.scalar_type());
  }

  const Matrix& w_hr() const { return w_hr_; }
  const Tensor& weight_gradient() const { return grad_w_hr_; }  // [P,H] in the state's dtype

  // The memory [P] for dL/dh_t of a row, which is kept for the steps of a chunk.
  T* d_h(int64_t t, int64_t row) const {
    const int64_t step_in_chunk = rows_.backward_time(t) % plan_.chunk_steps;
    return d_h_.data<T>() + (step_in_chunk * batch() + row) * output_size_;
  }

  // The first phase of a step. Computes dL/dh_t of a worker's rows and columns: the product of
  // gemm_rows with W_hh plus the gradients of output and h_n.
  void compute_d_h(const BackwardStepRows<T>& step, const Matrix& w_hh, const Worker& worker,
                   const void* encoded_zeros) const {  // the row of zeros in step.gemm_rows
    const Range panels = w_hh.panels_of_group(worker.unit_group, plan_.grid.unit_groups);
    const auto [begin, end] = w_hh.columns(panels);
    const auto first = step.gemm_rows.begin();
    const auto d_h = [&](int64_t r) { return static_cast<T*>(step.d_h[r]); };
    if (std::any_of(first, first + step.count, [&](const void* d) { return d != encoded_zeros; }))
      serial_gemm(step.gemm_rows, step.count, w_hh, panels, step.d_h);
    else  // no product, so that zero times an infinite weight is not NaN
      for (int64_t r = 0; r < step.count; ++r) std::fill(d_h(r) + begin, d_h(r) + end, T(A(0)));
    // The gradients of output and h_n are usually small, so adding them to each other first rounds
    // less.
    for (int64_t r = 0; r < step.count; ++r) {
      const BackwardRow<T>& row = step.cell_rows[r];
      for (int64_t n = begin; n < end; ++n)
        d_h(r)[n] = T(A(d_h(r)[n]) + (A(row.d_output[n]) + A(row.d_h_n[n])));
    }
  }

  // Begins the second phase of a step: the product before the cells multiplies dL/dh_t with W_hr,
  // and the cells get no other gradient of h_t.
  void encode_d_h(BackwardStepRows<T>& step, const Worker& worker, const T* zeros) const {
    for (int64_t r = 0; r < step.count; ++r) {
      step.gemm_rows[r] =
          encoded_.encode(static_cast<const T*>(step.d_h[r]), worker.index * batch() + r);
      step.cell_rows[r].d_output = step.cell_rows[r].d_h_n = zeros;
    }
  }

  // Adds the steps of a chunk to the gradient of W_hr. The first chunk starts the sum.
  void add_weight_gradient(const Range& chunk) {
    const auto d_h_rows = rows_.live_pointers<const void*>(
        chunk, /*backward=*/true, [&](int64_t t, int64_t row) { return d_h(t, row); });
    auto unprojected_rows =
        rows_.live_pointers<const void*>(chunk, /*backward=*/true, [&](int64_t t, int64_t row) {
          return const_data<T>(unprojected_) + rows_.sorted().flat_index(t, row) * hidden_size_;
        });
    weight_gradient_gemm(*plan_.gemm, d_h_rows, output_size_,
                         {{std::move(unprojected_rows), hidden_size_, data<A>(grad_w_hr_)}},
                         nullptr, /*accumulate=*/chunk.begin > 0);
  }

 private:
  int64_t batch() const { return rows_.sorted().batch(); }

  const CpuPlan& plan_;
  const DirectionRows& rows_;
  int64_t hidden_size_, output_size_;
  Matrix w_hr_;             // [P,H]
  Scratch d_h_;             // [chunk_steps,B,P]
  EncodedRows<T> encoded_;  // dL/dh_t as the GEMM takes it, [workers,B] rows
  Tensor unprojected_;      // [R,H] o * tanh(c)
  Tensor grad_w_hr_;
};

}  // namespace fastlstm
