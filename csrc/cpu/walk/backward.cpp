// The tiled engine backward: the gradients of one layer, in one direction or two, in chunks of
// steps from the last step to the first.
//
// For each chunk it first walks back over the steps: the gradients that reach h_t, then the cell
// equations backward, which give d_gates. Then it multiplies the chunk's d_gates, while they are in
// the cache: with W_ih for the gradient of the input, with W_hh for the gradient of h_0, and with
// input and h_{t-1} for the gradients of the weights. Workers (plan.h) divide each step as in the
// forward pass, and all threads share the products of a chunk. Arithmetic limits their speed.
#include <algorithm>
#include <cmath>
#include <optional>
#include <utility>

#include "core/flat_rows.h"
#include "core/operators.h"
#include "cpu/gemm/parallel_gemm.h"
#include "cpu/rows.h"
#include "cpu/stages/cells.h"
#include "cpu/stages/projection.h"
#include "cpu/stages/weight_gradients.h"
#include "cpu/walk/threads.h"
#include "cpu/walk/tiled.h"

namespace fastlstm {
namespace {

// The arguments and the results of a backward pass. Both directions share them.
template <typename T>
struct TiledBackwardCall {
  const LayerCall& layer;
  const Sizes sizes;
  const SortedRows rows;
  const CpuPlan& plan;
  const GradientRequest request;
  const Tensor output, cells, gates;      // saved by the forward pass
  const Tensor d_output, d_h_n, d_cells;  // the gradients of results, or undefined
  const SequenceRows<const T> x;
  const Zeros<T> zeros;
  Tensor grad_input;          // shape of the input, or [0] if it is not requested
  Tensor grad_h_0, grad_c_0;  // begin as the gradients of h_n and c_n

  TiledBackwardCall(const LayerCall& layer, const CpuPlan& plan, const BackwardArguments& in)
      : layer(layer),
        sizes(layer.sizes()),
        rows(layer),
        plan(plan),
        request(in.request),
        output(in.output.contiguous()),
        cells(in.cells.contiguous()),
        gates(in.gates.contiguous()),
        d_output(contiguous_or_undefined(in.grad_output)),
        d_h_n(contiguous_or_undefined(in.grad_h_n)),
        d_cells(contiguous_or_undefined(in.grad_cells)),
        x(layer.input, rows),
        zeros(std::max({4 * sizes.hidden_size, sizes.output_size, kMaxLanes})),
        grad_h_0(final_state_gradient(in.grad_h_n, layer.h_0, layer.input.options())),
        grad_c_0(final_state_gradient(in.grad_c_n, layer.c_0, layer.state_options())) {
    const auto options = layer.input.options();
    if (!request.input)
      grad_input = at::empty({0}, options);
    else if (rows.has_padding() || accumulates_grad_input())
      grad_input = at::zeros(layer.input.sizes(), options);
    else
      grad_input = at::empty(layer.input.sizes(), options);
  }

  // Whether both directions add to grad_input, which then begins as zeros. With one chunk this is
  // not needed, because direction 0 writes all steps before direction 1 adds.
  bool accumulates_grad_input() const {
    return sizes.directions > 1 && plan.chunk_steps < rows.steps();
  }

 private:
  static constexpr int64_t kMaxLanes = 16;  // kernels may load a whole vector of zeros
};

// The walk back of one direction. For each chunk call run for every step, phase and worker, then
// end_chunk; after the last chunk call append_weight_gradients.
template <typename T>
class TiledBackward {
  using A = State_t<T>;

 public:
  TiledBackward(const TiledBackwardCall<T>& call, int64_t d)
      : call_(call),
        d_(d),
        order_(call.rows, d == 1),
        w_hh_(weight(direction().w_hh, call.plan.grid.unit_groups, call.plan.w_hh)),
        cells_(const_direction_data<A>(call.cells, d)),
        gates_(const_direction_data<T>(call.gates, d)),
        d_h_n_(const_direction_data<T>(call.d_h_n, d)),
        d_cells_(const_direction_data<A>(call.d_cells, d)),
        grad_h_0_(direction_data<T>(call.grad_h_0, d)),
        grad_c_0_(direction_data<A>(call.grad_c_0, d)),
        previous_(call.layer, order_, d, const_data<T>(call.output) + d * call.sizes.output_size,
                  cells_, nullptr, call.zeros),
        all_d_gates_(call.request.return_d_gates ? empty_d_gates() : Tensor()),
        d_gates_ring_(
            scratch<T>(call.request.return_d_gates ? 0 : ring_steps() * batch() * 4 * hidden())),
        weight_gradients_(*call.plan.gemm, call.sizes, call.layer.has_bias(),
                          call.layer.state_options(), chunk_rows()) {
    if (call.layer.projects())
      projection_.emplace(call.layer, call.plan, order_, d,
                          flat(call.gates[d], call.sizes.flat_rows),
                          flat(call.cells[d], call.sizes.flat_rows));
    if (call.request.input) {
      w_ih_.emplace(weight(direction().w_ih, 1, call.plan.w_ih));
      if (!call.plan.gemm->multiplies_source_rows())
        encoded_d_gates_.emplace(*call.plan.gemm, chunk_rows(), 4 * hidden());
      grad_input_.emplace(call.grad_input, call.rows);
    }
    buffers_.reserve(call.plan.grid.workers());
    for (int64_t k = 0; k < call.plan.grid.workers(); ++k)
      buffers_.emplace_back(projection_ ? projection_->w_hr() : w_hh_, batch(), hidden());
  }

  int64_t phases() const { return projection_ ? 2 : 1; }

  // Runs a worker's part of step k of the walk back. With a projection, phase 0 computes dL/dh_t
  // and phase 1 runs the cells; without one, the cells are phase 0.
  void run(int64_t k, int64_t phase, const Worker& worker) {
    WorkerBuffers& own = buffers_[worker.index];
    if (phase == 0) collect_rows(order_.backward_time(k), worker);
    if (!projection_) return run_cells(w_hh_, worker);
    if (phase == 0)
      return projection_->compute_d_h(own.step, w_hh_, worker, own.encoded.zeros(zeros()));
    projection_->encode_d_h(own.step, worker, zeros());
    run_cells(projection_->w_hr(), worker);
  }

  // Multiplies d_gates of the chunk's steps.
  void end_chunk(const Range& chunk) {
    const auto d_gates = live_pointers<const T*>(
        chunk, [&](int64_t t, int64_t row) { return this->d_gates(t, row); });
    const auto encoded = weight_gradients_.encode(d_gates);
    if (w_ih_)
      parallel_gemm_into<T>(
          encoded_d_gates_ ? encoded_d_gates_->encode(d_gates) : encoded, *w_ih_,
          live_pointers<void*>(chunk,
                               [&](int64_t t, int64_t row) { return grad_input_->at(t, row); }),
          d_ > 0 || call_.accumulates_grad_input());
    if (call_.request.state) write_grad_h_0(chunk);
    if (call_.request.return_d_gates) return;
    const auto x =
        live_pointers<const T*>(chunk, [&](int64_t t, int64_t row) { return call_.x.at(t, row); });
    auto h_prev = live_pointers<const T*>(
        chunk, [&](int64_t t, int64_t row) { return previous_.at(t, row).h; });
    drop_last_zeros(h_prev, d_gates);
    weight_gradients_.add(d_gates, encoded, x, h_prev, /*accumulate=*/chunk.begin > 0);
    if (projection_) projection_->add_weight_gradient(chunk);
  }

  // Appends the gradients of this direction's weights in the order of BackwardResult.
  void append_weight_gradients(std::vector<Tensor>& gradients) const {
    if (call_.request.return_d_gates) return gradients.push_back(all_d_gates_);
    const auto append = [&](const Tensor& gradient) {
      gradients.push_back(gradient.to(call_.layer.input.scalar_type()));
    };
    for (const Tensor& gradient : weight_gradients_.all()) append(gradient);
    if (projection_) append(projection_->weight_gradient());
  }

 private:
  // The memory of one worker, allocated once for the whole walk.
  struct WorkerBuffers {
    WorkerBuffers(const Matrix& w_hh_or_hr, int64_t batch, int64_t hidden_size)
        : step(batch),
          encoded(w_hh_or_hr.gemm(), batch, 4 * hidden_size),
          cells(w_hh_or_hr, batch, hidden_size) {}
    BackwardStepRows<T> step;
    EncodedRows<T> encoded;  // d_gates of the step that the forward pass visits next
    CellsBackward<T> cells;
  };

  const Direction& direction() const { return call_.layer.directions[d_]; }
  // A weight [4H,N] as the matrix that rows of d_gates [4H] are multiplied with.
  Matrix weight(const Tensor& w, int64_t groups, MatrixForm form) const {
    const GemmKernels& gemm = *call_.plan.gemm;
    return matrix_of(gemm, contiguous_source(gemm, w), false, groups, form);
  }
  int64_t batch() const { return call_.rows.batch(); }
  int64_t hidden() const { return call_.sizes.hidden_size; }
  int64_t chunk_rows() const { return call_.plan.chunk_steps * batch(); }
  const T* zeros() const { return call_.zeros.values(); }

  template <typename Pointer>
  std::vector<Pointer> live_pointers(const Range& chunk, const auto& pointer_to) const {
    return order_.live_pointers<Pointer>(chunk, /*backward=*/true, pointer_to);
  }

  // The steps in the ring of d_gates: those of a chunk, and the step that the walk back visited
  // before the chunk.
  int64_t ring_steps() const { return call_.plan.chunk_steps + 1; }
  Tensor empty_d_gates() const {  // [T,B,4H] or [R,4H]
    const auto shape = call_.gates.sizes().slice(1);
    const auto options = call_.layer.input.options();
    return call_.rows.has_padding() ? at::zeros(shape, options) : at::empty(shape, options);
  }
  // The gradients of the pre-activations of a row [4H].
  T* d_gates(int64_t t, int64_t row) const {
    if (all_d_gates_.defined())
      return data<T>(all_d_gates_) + call_.rows.flat_index(t, row) * 4 * hidden();
    const int64_t step_in_ring = order_.backward_time(t) % ring_steps();
    return d_gates_ring_.data<T>() + (step_in_ring * batch() + row) * 4 * hidden();
  }

  // Writes dL/dh_0 of the rows whose first step is in the chunk: d_gates W_hh, or zeros if the
  // state was reset before that step. Rows without steps keep dL/dh_n.
  void write_grad_h_0(const Range& chunk) const {
    std::vector<const T*> from;
    std::vector<void*> to;
    for (int64_t row = 0; row < call_.rows.live_rows(0); ++row) {
      const int64_t t = order_.first_time(row), k = order_.backward_time(t);
      if (k < chunk.begin || k >= chunk.end) continue;
      T* const grad = grad_h_0_ + call_.rows.batch_index(row) * call_.sizes.output_size;
      if (call_.rows.is_reset(t, row))
        std::fill_n(grad, call_.sizes.output_size, T(A(0)));
      else
        from.push_back(d_gates(t, row)), to.push_back(grad);
    }
    const EncodedRows<T> encoded(*call_.plan.gemm, from.size(), 4 * hidden());
    parallel_gemm_into<T>(encoded.encode(from), w_hh_, to, /*accumulate=*/false);
  }

  // Drops the rows at the end of h_prev that are zeros, since they add nothing to the gradient of
  // W_hh. A row whose d_gates are not finite stays: 0 times NaN is NaN.
  void drop_last_zeros(std::vector<const T*>& h_prev, const std::vector<const T*>& d_gates) const {
    const auto finite = [](T x) { return std::isfinite(A(x)); };
    while (!h_prev.empty() && h_prev.back() == zeros()) {
      const T* const last = d_gates[h_prev.size() - 1];
      if (!std::all_of(last, last + 4 * hidden(), finite)) return;
      h_prev.pop_back();
    }
  }

  void run_cells(const Matrix& w_hh_or_hr, const Worker& worker) {
    WorkerBuffers& own = buffers_[worker.index];
    own.cells.run(w_hh_or_hr,
                  w_hh_or_hr.panels_of_group(worker.unit_group, call_.plan.grid.unit_groups),
                  own.step, own.encoded.zeros(zeros()));
  }

  // Collects the rows of step t that are a worker's.
  void collect_rows(int64_t t, const Worker& worker) {
    const SortedRows& rows = call_.rows;
    WorkerBuffers& own = buffers_[worker.index];
    BackwardStepRows<T>& step = own.step;
    const int64_t after = order_.time_after(t);
    step.count = 0;
    for (int64_t row = worker.row_group; row < rows.live_rows(t);
         row += call_.plan.grid.row_groups) {
      const bool is_last = t == order_.last_time(row);
      const int64_t r = step.count++;
      step.gemm_rows[r] = is_last || rows.is_reset(after, row)
                              ? own.encoded.zeros(zeros())
                              : own.encoded.encode(d_gates(after, row), r);
      if (projection_) step.d_h[r] = projection_->d_h(t, row);
      step.cell_rows[r] = cell_row(t, row, is_last);
    }
  }

  BackwardRow<T> cell_row(int64_t t, int64_t row, bool is_last) const {
    const int64_t b = call_.rows.batch_index(row), flat = call_.rows.flat_index(t, row);
    const int64_t D = call_.sizes.directions, P = call_.sizes.output_size;
    return {
        .d_output = call_.d_output.defined() ? const_data<T>(call_.d_output) + (flat * D + d_) * P
                                             : zeros(),
        .d_h_n = is_last && d_h_n_ ? d_h_n_ + b * P : zeros(),
        .d_cells = d_cells_ ? d_cells_ + flat * hidden() : call_.zeros.states(),
        .gates = gates_ + flat * 4 * hidden(),
        .c = cells_ + flat * hidden(),
        .c_prev = previous_.at(t, row).c,
        .dc = grad_c_0_ + b * hidden(),
        .d_gates = d_gates(t, row),
        .reset = call_.rows.is_reset(t, row),
    };
  }

  const TiledBackwardCall<T>& call_;
  const int64_t d_;
  const DirectionRows order_;
  const Matrix w_hh_;
  const A* const cells_;    // [R,H] of this direction, as all pointers below
  const T* const gates_;    // [R,4H]
  const T* const d_h_n_;    // [B,P] dL/dh_n, or nullptr
  const A* const d_cells_;  // [R,H] dL/dcells, or nullptr
  T* const grad_h_0_;       // [B,P]
  A* const grad_c_0_;       // [B,H], dL/dc_t of each row during the walk
  const PreviousState<T> previous_;
  const Tensor all_d_gates_;    // d_gates of all steps, if they are requested in place of gradients
  const Scratch d_gates_ring_;  // [ring_steps(),B,4H], if not
  WeightGradients<T> weight_gradients_;
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
  const TiledBackwardCall<T> call(layer, plan, in);
  const int64_t directions = call.sizes.directions, steps = call.rows.steps();
  std::optional<TiledBackward<T>> walks[2];
  for (int64_t d = 0; d < directions; ++d) walks[d].emplace(call, d);
  const int64_t chunks = divide_up(steps, plan.chunk_steps);
  for (int64_t i = 0; i < chunks; ++i) {
    const Range chunk = part_of(steps, i, chunks);
    run_steps(plan, directions, chunk, walks);
    for (int64_t d = 0; d < directions; ++d) walks[d]->end_chunk(chunk);
  }
  std::vector<Tensor> grad_weights;
  for (int64_t d = 0; d < directions; ++d) walks[d]->append_weight_gradients(grad_weights);
  return {call.grad_input, call.grad_h_0, call.grad_c_0.to(layer.c_0.scalar_type()), grad_weights};
}

}  // namespace

BackwardResult tiled_backward(const LayerCall& layer, const CpuPlan& plan,
                              const BackwardArguments& in) {
  return dispatch_dtype(plan.dtype,
                        [&](auto t) { return run_backward<decltype(t)>(layer, plan, in); });
}

}  // namespace fastlstm
