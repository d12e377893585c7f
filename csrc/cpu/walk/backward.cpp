// The tiled engine backward: the gradients of one layer, in one direction or two, in chunks of
// steps from the last step to the first.
//
// For each chunk it first walks back over the steps: the gradients that reach h_t, then the cell
// equations backward, which give d_gates. Then it multiplies the chunk's d_gates, while they are in
// the cache: with W_ih for the gradient of the input, with W_hh for the gradient of h_0, and with
// input and h_{t-1} for the gradients of the weights. Workers (plan.h) divide each step as in the
// forward pass, and all threads share the products of a chunk. Arithmetic limits their speed.
#include <cmath>

#include "core/flat_rows.h"
#include "cpu/gemm/parallel_gemm.h"
#include "cpu/stages/projection.h"
#include "cpu/stages/weight_gradients.h"
#include "cpu/walk/threads.h"
#include "cpu/walk/tiled.h"

namespace fastlstm {
namespace {

template <typename T>
struct TiledBackwardCall {
  static constexpr int64_t kMaxLanes = 16;  // kernels may load a whole vector of zeros
  const LayerCall& layer;
  const CpuPlan& plan;
  const BackwardArguments& in;
  const Sizes sizes = layer.sizes();
  const SortedRows rows{layer};
  const SequenceRows<const T> x{layer.input, rows};
  const Zeros<T> zeros{std::max({4 * sizes.hidden_size, sizes.output_size, kMaxLanes})};
  const Tensor output = in.output.contiguous(), cells = in.cells.contiguous(),
               gates = in.gates.contiguous();
  // The gradients of results, or undefined.
  const Tensor d_output = contiguous_or_undefined(in.grad_output),
               d_h_n = contiguous_or_undefined(in.grad_h_n),
               d_cells = contiguous_or_undefined(in.grad_cells);
  // The shape of the input, or [0] if it is not requested.
  const Tensor grad_input = at::empty(in.request.input ? layer.input.sizes() : at::IntArrayRef({0}),
                                      layer.input.options());
  // These begin as the gradients of h_n and c_n.
  const Tensor grad_h_0 = final_state_gradient(in.grad_h_n, layer.h_0, layer.input.options()),
               grad_c_0 = final_state_gradient(in.grad_c_n, layer.c_0, layer.state_options());

  // Whether both directions add to grad_input, which then begins as zeros. If there is one chunk,
  // direction 0 writes all steps before direction 1 adds to them.
  bool accumulates_grad_input() const {
    return sizes.directions > 1 && plan.chunk_steps < rows.steps();
  }
};

// The walk back of one direction. For each chunk call run for every step, phase and worker, then
// end_chunk; after the last chunk call append_weight_gradients.
template <typename T>
class TiledBackward {
  using A = State_t<T>;

 public:
  TiledBackward(const TiledBackwardCall<T>& call, int64_t d) : call_(call), d_(d) {
    if (request_.return_d_gates) {
      all_d_gates_ = at::empty(call.gates.sizes().slice(1), call.layer.input.options());
      if (call.rows.has_padding()) all_d_gates_.zero_();
    }
    if (call.layer.projects())
      projection_.emplace(call.layer, call.plan, order_, d, call.gates[d], call.cells[d]);
    if (request_.input) {
      w_ih_.emplace(weight(direction().w_ih, 1, call.plan.w_ih));
      if (!call.plan.gemm->multiplies_source_rows())
        encoded_d_gates_.emplace(*call.plan.gemm, call.plan.chunk_steps * batch(), width_);
      grad_input_.emplace(call.grad_input, call.rows);
    }
    for (int64_t k = 0; k < call.plan.grid.workers(); ++k)
      buffers_.push_back({StepRows<BackwardRow<T>>(batch()),
                          {*call.plan.gemm, batch(), width_},
                          {w_hh_or_hr(), batch(), hidden()}});
  }

  int64_t phases() const { return 1 + projection_.has_value(); }

  // Runs a worker's part of step k of the walk back. The cells are the last phase.
  void run(int64_t k, int64_t phase, const Worker& worker) {
    auto& [step, next_d_gates, cells] = buffers_[worker.index];
    const void* const encoded_zeros = next_d_gates.zeros(zeros());
    if (phase == 0) collect_rows(order_.time_or_k(k), worker);
    if (projection_ && phase == 0)
      return projection_->compute_d_h(step, w_hh_, worker, encoded_zeros);
    if (projection_) projection_->encode_d_h(step, worker, zeros());
    const Matrix& w = w_hh_or_hr();
    cells.run(w, w.panels_of(worker, call_.plan.grid), step, encoded_zeros);
  }

  void end_chunk(const Range& chunk) {
    const auto pointers = [&](const auto& pointer_to) {
      return order_.live_pointers(chunk, pointer_to);
    };
    const auto d_gates =
        pointers([&](int64_t t, int64_t row) -> const T* { return this->d_gates(t, row); });
    const auto encoded = weight_gradients_.encode(d_gates);
    if (w_ih_)
      parallel_gemm_into(
          encoded_d_gates_ ? encoded_d_gates_->encode(d_gates) : encoded, *w_ih_,
          pointers([&](int64_t t, int64_t row) -> void* { return grad_input_->at(t, row); }),
          dtype_of_type<T>, d_ > 0 || call_.accumulates_grad_input());
    if (request_.state) write_grad_h_0(chunk);
    if (request_.return_d_gates) return;
    const auto x = pointers([&](int64_t t, int64_t row) { return call_.x.at(t, row); });
    auto h_prev = pointers([&](int64_t t, int64_t row) { return previous_.at(t, row).h; });
    drop_last_zeros(h_prev, d_gates);
    weight_gradients_.add(d_gates, encoded, x, h_prev, /*accumulate=*/chunk.begin > 0);
    if (projection_) projection_->add_weight_gradient(chunk);
  }

  void append_weight_gradients(std::vector<Tensor>& gradients) const {
    if (request_.return_d_gates) return gradients.push_back(all_d_gates_);
    weight_gradients_.append_to(gradients);
    if (projection_) gradients.push_back(projection_->weight_gradient());
  }

 private:
  struct WorkerBuffers {
    StepRows<BackwardRow<T>> step;
    EncodedRows<T> next_d_gates;  // of the step that the forward pass visits next
    CellsBackward<T> cells;
  };

  const Direction& direction() const { return call_.layer.directions[d_]; }
  // A weight [4H,N] as the matrix that rows of d_gates [4H] are multiplied with.
  Matrix weight(const Tensor& w, int64_t groups, MatrixForm form) const {
    const GemmKernels& gemm = *call_.plan.gemm;
    return matrix_of(gemm, contiguous_source(gemm, w), false, groups, form);
  }
  const Matrix& w_hh_or_hr() const { return projection_ ? projection_->w_hr() : w_hh_; }
  int64_t batch() const { return call_.rows.batch(); }
  int64_t hidden() const { return call_.sizes.hidden_size; }
  const T* zeros() const { return call_.zeros.values(); }

  // The steps in the ring of d_gates: those of a chunk, and the one that was visited before.
  int64_t ring_steps() const { return call_.plan.chunk_steps + 1; }
  T* d_gates(int64_t t, int64_t row) const {  // [4H]
    if (all_d_gates_.defined())
      return data<T>(all_d_gates_) + call_.rows.flat_index(t, row) * width_;
    const int64_t step_in_ring = order_.time_or_k(t) % ring_steps();
    return d_gates_ring_.data<T>() + (step_in_ring * batch() + row) * width_;
  }

  // Writes dL/dh_0 of the rows whose first step is in the chunk: d_gates W_hh, or zeros if the
  // state was reset before that step. Rows without steps keep dL/dh_n.
  void write_grad_h_0(const Range& chunk) const {
    std::vector<const T*> from;
    std::vector<void*> to;
    for (int64_t row = 0; row < call_.rows.live_rows(0); ++row) {
      const int64_t t = order_.first_time(row), k = order_.time_or_k(t);
      if (k < chunk.begin || k >= chunk.end) continue;
      T* const grad = grad_h_0_ + call_.rows.batch_index(row) * call_.sizes.output_size;
      if (call_.rows.is_reset(t, row))
        std::fill_n(grad, call_.sizes.output_size, T(A(0)));
      else
        from.push_back(d_gates(t, row)), to.push_back(grad);
    }
    const EncodedRows<T> encoded(*call_.plan.gemm, from.size(), width_);
    parallel_gemm_into(encoded.encode(from), w_hh_, to, dtype_of_type<T>, /*accumulate=*/false);
  }

  // Drops the rows at the end of h_prev that are zeros, since they add nothing to the gradient of
  // W_hh. A row whose d_gates are not finite stays: 0 times NaN is NaN.
  void drop_last_zeros(std::vector<const T*>& h_prev, const std::vector<const T*>& d_gates) const {
    const auto finite = [](T x) { return std::isfinite(A(x)); };
    while (!h_prev.empty() && h_prev.back() == zeros()) {
      const T* const last = d_gates[h_prev.size() - 1];
      if (!std::all_of(last, last + width_, finite)) return;
      h_prev.pop_back();
    }
  }

  void collect_rows(int64_t t, const Worker& worker) {
    const SortedRows& rows = call_.rows;
    auto& [step, next_d_gates, cells] = buffers_[worker.index];
    const int64_t after = order_.time_after(t);
    step.count = 0;
    rows.for_rows_of_group(t, worker.row_group, call_.plan.grid.row_groups, [&](int64_t row) {
      const bool is_last = t == order_.last_time(row);
      const int64_t r = step.count++;
      step.gemm_rows[r] = is_last || rows.is_reset(after, row)
                              ? next_d_gates.zeros(zeros())
                              : next_d_gates.encode(d_gates(after, row), r);
      if (projection_) step.h[r] = projection_->d_h(t, row);
      step.cell_rows[r] = cell_row(t, row, is_last);
    });
  }

  BackwardRow<T> cell_row(int64_t t, int64_t row, bool is_last) const {
    const int64_t b = call_.rows.batch_index(row), flat = call_.rows.flat_index(t, row);
    const int64_t D = call_.sizes.directions, P = call_.sizes.output_size;
    return {
        .d_output = call_.d_output.defined() ? const_data<T>(call_.d_output) + (flat * D + d_) * P
                                             : zeros(),
        .d_h_n = is_last && d_h_n_ ? d_h_n_ + b * P : zeros(),
        .d_cells = d_cells_ ? d_cells_ + flat * hidden() : call_.zeros.states(),
        .gates = gates_ + flat * width_,
        .c = cells_ + flat * hidden(),
        .c_prev = previous_.at(t, row).c,
        .dc = grad_c_0_ + b * hidden(),
        .d_gates = d_gates(t, row),
        .reset = call_.rows.is_reset(t, row),
    };
  }

  const TiledBackwardCall<T>& call_;
  const int64_t d_, width_ = 4 * call_.sizes.hidden_size;  // width_: of a row of d_gates
  const GradientRequest& request_ = call_.in.request;
  const StepOrder order_{call_.rows, d_ == 1, /*backward=*/true};
  const Matrix w_hh_ = weight(direction().w_hh, call_.plan.grid.unit_groups, call_.plan.w_hh);
  // The tensors of this direction.
  const A* const cells_ = direction_data<const A>(call_.cells, d_);      // [R,H]
  const T* const gates_ = direction_data<const T>(call_.gates, d_);      // [R,4H]
  const T* const d_h_n_ = direction_data<const T>(call_.d_h_n, d_);      // [B,P], or nullptr
  const A* const d_cells_ = direction_data<const A>(call_.d_cells, d_);  // [R,H], or nullptr
  T* const grad_h_0_ = direction_data<T>(call_.grad_h_0, d_);            // [B,P]
  A* const grad_c_0_ = direction_data<A>(call_.grad_c_0, d_);  // [B,H]; during the walk dL/dc_t
  const T* const output_ = const_data<T>(call_.output) + d_ * call_.sizes.output_size;
  const PreviousState<T> previous_{call_.layer, order_, d_, output_, cells_, nullptr, call_.zeros};
  Tensor all_d_gates_;           // [T,B,4H] or [R,4H], if d_gates are requested
  const Scratch d_gates_ring_ =  // [ring_steps(),B,4H], if not
      request_.return_d_gates ? Scratch() : scratch<T>(ring_steps() * batch() * width_);
  WeightGradients<T> weight_gradients_{call_.plan, call_.layer};
  std::optional<ProjectionBackward<T>> projection_;
  std::optional<Matrix> w_ih_;  // defined if grad_input is requested
  // d_gates in the format that is multiplied by W_ih, if the weight gradients need another format.
  std::optional<EncodedRows<T>> encoded_d_gates_;
  std::optional<SequenceRows<T>> grad_input_;
  std::vector<WorkerBuffers> buffers_;  // by Worker::index
};

template <typename T>
BackwardResult run_backward(const LayerCall& layer, const CpuPlan& plan,
                            const BackwardArguments& in) {
  const TiledBackwardCall<T> call{layer, plan, in};
  if (call.rows.has_padding() || call.accumulates_grad_input()) call.grad_input.zero_();
  const int64_t directions = call.sizes.directions, steps = call.rows.steps();
  std::array<std::optional<TiledBackward<T>>, kMaxDirections> walks;
  for (int64_t d = 0; d < directions; ++d) walks[d].emplace(call, d);
  const int64_t chunks = divide_up(steps, plan.chunk_steps);
  for (int64_t i = 0; i < chunks; ++i) {
    const Range chunk = part_of(steps, i, chunks);
    run_steps(plan, directions, chunk, walks);
    for (int64_t d = 0; d < directions; ++d) walks[d]->end_chunk(chunk);
  }
  std::vector<Tensor> grad_weights;
  for (int64_t d = 0; d < directions; ++d) walks[d]->append_weight_gradients(grad_weights);
  for (Tensor& gradient : grad_weights) gradient = gradient.to(layer.input.scalar_type());
  return {call.grad_input, call.grad_h_0, call.grad_c_0.to(layer.c_0.scalar_type()), grad_weights};
}

}  // namespace

BackwardResult tiled_backward(const LayerCall& layer, const CpuPlan& plan,
                              const BackwardArguments& in) {
  return dispatch_dtype(plan.dtype,
                        [&](auto t) { return run_backward<decltype(t)>(layer, plan, in); });
}

}  // namespace fastlstm
