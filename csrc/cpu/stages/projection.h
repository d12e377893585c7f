// The projection h_t = W_hr (o * tanh(c)) of Sak et al. (2014), for a worker's rows and units.
//
// It needs o * tanh(c) of all units, so each step has two phases. In the forward pass they are the
// cells, then the projection; in the backward pass dL/dh_t, then the cells.
#pragma once
#include <utility>

#include "core/operators.h"
#include "cpu/gemm/encoded_rows.h"
#include "cpu/gemm/parallel_gemm.h"
#include "cpu/stages/cells.h"
#include "cpu/stages/weight_gradients.h"

namespace fastlstm {

template <typename T>
class ProjectionForward {
 public:
  // w_hr: W_hr^T [H,P].
  ProjectionForward(int64_t batch, const ThreadGrid& grid, const Matrix& w_hr)
      : batch_(batch), grid_(grid), w_hr_(w_hr) {}

  // The memory [H] to which the cells of a row write o * tanh(c).
  T* unprojected(int64_t row) const { return unprojected_.data<T>() + row * w_hr_.K(); }

  // Computes step.h of a worker's rows and columns.
  void run(StepRows<ForwardRow<T>>& step, const Worker& worker) const {
    for (int64_t r = 0; r < step.count; ++r)
      step.gemm_rows[r] = encoded_.encode(step.cell_rows[r].h, worker.index * batch_ + r);
    serial_gemm<T>(step.gemm_rows.data(), step.count, w_hr_, w_hr_.panels_of(worker, grid_),
                   step.h.data());
  }

 private:
  int64_t batch_;
  const ThreadGrid& grid_;
  const Matrix& w_hr_;
  Scratch unprojected_ = scratch<T>(batch_ * w_hr_.K());  // [B,H]
  // o * tanh(c) as the GEMM takes it, [workers,B] rows
  EncodedRows<T> encoded_{w_hr_.gemm(), grid_.workers() * batch_, w_hr_.K()};
};

// The projection of one direction in the backward pass, and the gradient of W_hr.
template <typename T>
class ProjectionBackward {
  using A = State_t<T>;

 public:
  // gates [...,4H] and cells [...,H] of direction d, saved by the forward pass.
  ProjectionBackward(const LayerCall& layer, const CpuPlan& plan, const StepOrder& order, int64_t d,
                     const Tensor& gates, const Tensor& cells)
      : plan_(plan),
        order_(order),
        hidden_size_(layer.hidden_size.expect_int()),
        output_size_(layer.output_size.expect_int()),
        w_hr_(matrix_of(*plan.gemm, layer.directions[d].w_hr.contiguous(), false,
                        plan.grid.unit_groups, plan.w_hh)),
        grad_w_hr_(
            at::empty({output_size_, hidden_size_}, weight_gradient_options<T>(plan, layer))) {
    const Tensor o = gates.narrow(-1, 3 * hidden_size_, hidden_size_).to(cells.scalar_type());
    unprojected_ = hidden_state(o, cells).to(layer.input.scalar_type());
  }

  const Matrix& w_hr() const { return w_hr_; }
  const Tensor& weight_gradient() const { return grad_w_hr_; }  // [P,H]

  // The memory [P] for dL/dh_t of a row, which is kept for the steps of a chunk.
  T* d_h(int64_t t, int64_t row) const {
    const int64_t step_in_chunk = order_.time_or_k(t) % plan_.chunk_steps;
    return d_h_.data<T>() + (step_in_chunk * batch() + row) * output_size_;
  }

  // The first phase of a step: computes dL/dh_t of a worker's rows and columns as the product of
  // gemm_rows with W_hh plus the gradients of output and h_n. `zeros`: see Accumulators.
  void compute_d_h(const StepRows<BackwardRow<T>>& step, const Matrix& w_hh, const Worker& worker,
                   const void* zeros) const {
    const Range panels = w_hh.panels_of(worker, plan_.grid);
    const auto [begin, end] = w_hh.columns(panels);
    const auto first = step.gemm_rows.begin();
    const auto d_h = [&](int64_t r) { return static_cast<T*>(step.h[r]); };
    if (std::any_of(first, first + step.count, [&](const void* d) { return d != zeros; }))
      serial_gemm<T>(step.gemm_rows.data(), step.count, w_hh, panels, step.h.data());
    else  // no product, so that zero times an infinite weight is not NaN
      for (int64_t r = 0; r < step.count; ++r) std::fill(d_h(r) + begin, d_h(r) + end, T(A(0)));
    // The gradients of output and h_n are usually small, so adding these two first rounds less.
    for (int64_t r = 0; r < step.count; ++r) {
      const BackwardRow<T>& row = step.cell_rows[r];
      for (int64_t n = begin; n < end; ++n)
        d_h(r)[n] = T(A(d_h(r)[n]) + (A(row.d_output[n]) + A(row.d_h_n[n])));
    }
  }

  // Begins the second phase of a step: the cells get dL/dh_t W_hr and no other gradient of h_t.
  void encode_d_h(StepRows<BackwardRow<T>>& step, const Worker& worker, const T* zeros) const {
    for (int64_t r = 0; r < step.count; ++r) {
      step.gemm_rows[r] =
          encoded_.encode(static_cast<const T*>(step.h[r]), worker.index * batch() + r);
      step.cell_rows[r].d_output = step.cell_rows[r].d_h_n = zeros;
    }
  }

  void add_weight_gradient(const Range& chunk) {
    const auto d_h_rows = order_.live_pointers(
        chunk, [&](int64_t t, int64_t row) -> const void* { return d_h(t, row); });
    auto unprojected_rows = order_.live_pointers(chunk, [&](int64_t t, int64_t row) -> const void* {
      return const_data<T>(unprojected_) + order_.rows.flat_index(t, row) * hidden_size_;
    });
    weight_gradient_gemm(*plan_.gemm, d_h_rows, output_size_,
                         {{std::move(unprojected_rows), grad_w_hr_}}, nullptr,
                         /*accumulate=*/chunk.begin > 0);
  }

 private:
  int64_t batch() const { return order_.rows.batch(); }

  const CpuPlan& plan_;
  const StepOrder& order_;
  int64_t hidden_size_, output_size_;
  Matrix w_hr_;                                                           // [P,H]
  Scratch d_h_ = scratch<T>(plan_.chunk_steps * batch() * output_size_);  // [chunk_steps,B,P]
  // dL/dh_t as the GEMM takes it, [workers,B] rows
  EncodedRows<T> encoded_{*plan_.gemm, plan_.grid.workers() * batch(), output_size_};
  Tensor unprojected_, grad_w_hr_;  // o * tanh(c) [R,H] or [T,B,H]; the gradient [P,H]
};

}  // namespace fastlstm
