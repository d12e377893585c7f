// The backward walk, of one direction or of two. In chunks of steps from the last to the first:
// walk back through the cells, then take the chunk's
// gradients of the gates to those of the weights, of the input and of h_0 while they are in cache.

#include <algorithm>
#include <cmath>
#include <deque>
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

// The part of a call that both directions share.
template <typename T>
struct TiledBackwardCall {
  using A = State_t<T>;

  const LayerCall& layer;
  const Sizes sizes;
  const SortedRows rows;
  const CpuPlan& plan;
  const GradientRequest request;
  const Tensor output, cells, gates;      // saved
  const Tensor d_output, d_h_n, d_cells;  // from outside, or undefined
  const SequenceRows<const T> x;
  const InitialState<T> initial;
  const Zeros<T> zeros;
  Tensor grad_input, grad_h_0, grad_c_0;

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
        initial(layer),
        zeros(std::max({4 * sizes.hidden_size, sizes.output_size, int64_t(16)})) {  // a vector
    grad_input = !request.input ? at::empty({0}, layer.input.options())
                 : padded() || adds_to_input()
                     ? at::zeros(layer.input.sizes(), layer.input.options())
                     : at::empty(layer.input.sizes(), layer.input.options());
    grad_h_0 = final_state_gradient(in.grad_h_n, layer.h_0, layer.input.options());
    grad_c_0 = final_state_gradient(in.grad_c_n, layer.c_0, layer.state_options());
  }

  // Whether there are positions that no step reaches.
  bool padded() const { return rows.total() < sizes.flat_rows; }
  // Whether the second direction comes to some steps before the first one does.
  bool adds_to_input() const { return sizes.directions > 1 && plan.chunk_steps < rows.steps(); }
};

template <typename T>
class TiledBackward {
  using A = State_t<T>;

 public:
  TiledBackward(const TiledBackwardCall<T>& call, int64_t d)
      : call_(call),
        d_(d),
        directed_(call.rows, d == 1),
        w_hh_(matrix(direction().w_hh, call.plan.grid.unit_groups, call.plan.w_hh)),
        previous_(call.initial, directed_, call.sizes, d, const_data<T>(call.output),
                  const_data<A>(call.cells), call.zeros),
        per_row_(call.request.return_d_gates ? empty_per_row() : Tensor()),
        ring_(scratch<T>(call.request.return_d_gates ? 0 : ring_rows() * 4 * hidden())),
        weights_(*call.plan.gemm, call.sizes, call.layer.has_bias(), call.layer.state_options(),
                 chunk_rows()),
        cells_(const_data<A>(call.cells) + d * flat_rows() * hidden()),
        gates_(const_data<T>(call.gates) + d * flat_rows() * 4 * hidden()),
        d_h_0_(data<T>(call.grad_h_0[d])),
        dc_(data<A>(call.grad_c_0[d])) {
    if (call.layer.projects())
      projection_.emplace(call.layer, call.plan, directed_, d, flat(call.gates[d], flat_rows()),
                          flat(call.cells[d], flat_rows()));
    if (call.request.input) {
      w_ih_.emplace(matrix(direction().w_ih, 1, call.plan.w_ih));
      if (!call.plan.gemm->multiplies_source_rows())
        to_input_.emplace(*call.plan.gemm, chunk_rows(), 4 * hidden());
      dx_.emplace(call.grad_input, call.rows);
    }
    workers_.reserve(call.plan.grid.workers());
    for (int64_t k = 0; k < call.plan.grid.workers(); ++k)
      workers_.emplace_back(projection_ ? projection_->w_hr() : w_hh_, call.rows.batch(), hidden());
  }

  int64_t phases() const { return projection_ ? 2 : 1; }

  // In this order: a worker's part of step k of the walk back, after the steps of a chunk, and at
  // the end of the walk.
  void step(int64_t k, int64_t phase, const Worker& worker) {
    BackwardStepRows<T>& step = workers_[worker.index].step;
    find_rows(directed_.step_back(k), worker);
    if (!projection_) return through_cells(w_hh_, step.gemm_rows.data(), worker);
    const void* const encoded_zeros = workers_[worker.index].encoded.zeros(zeros());
    if (phase == 0) return projection_->compute_d_h(step, w_hh_, worker, encoded_zeros);
    through_cells(projection_->w_hr(), projection_->encode_d_h(step, worker, zeros()), worker);
  }
  void end(const Range& chunk) {
    const auto d_gates = rows_of<const T*>(chunk, d_gates_of());
    const auto encoded = weights_.encode(d_gates);
    if (w_ih_)
      parallel_gemm_into<T>(
          to_input_ ? to_input_->encode(d_gates) : encoded, *w_ih_,
          rows_of<void*>(chunk, [&](int64_t t, int64_t row) { return dx_->at(t, row); }),
          d_ > 0 || call_.adds_to_input());
    if (call_.request.state) add_initial_state(chunk);
    if (call_.request.return_d_gates) return;
    const auto x =
        rows_of<const T*>(chunk, [&](int64_t t, int64_t row) { return call_.x.at(t, row); });
    auto h_prev =
        rows_of<const T*>(chunk, [&](int64_t t, int64_t row) { return previous_.h(t, row); });
    drop_zeros(h_prev, d_gates);
    weights_.add(d_gates, encoded, x, h_prev, chunk.begin > 0);
    if (projection_) projection_->add(chunk);
  }
  // Appends the gradients of the weights, as BackwardResult has them.
  void finish(std::vector<Tensor>& gradients) {
    if (call_.request.return_d_gates) return gradients.push_back(per_row_);
    for (const Tensor& gradient : weights_.all()) gradients.push_back(rounded(gradient));
    if (projection_) gradients.push_back(rounded(projection_->gradient()));
  }

 private:
  // The memory of a thread, allocated before the walk, as in forward.cpp.
  struct WorkerBuffers {
    WorkerBuffers(const Matrix& to_cells, int64_t batch, int64_t hidden_size)
        : step(batch),
          encoded(to_cells.gemm(), batch, 4 * hidden_size),
          cells(to_cells, batch, hidden_size) {}
    BackwardStepRows<T> step;
    EncodedRows<T> encoded;
    CellsBackward<T> cells;
  };

  const Direction& direction() const { return call_.layer.directions[d_]; }
  // A weight [K,N] for products with d_gates.
  Matrix matrix(const Tensor& w, int64_t pieces, MatrixForm form) const {
    const GemmKernels& gemm = *call_.plan.gemm;
    return matrix_of(gemm, contiguous_source(gemm, w), false, pieces, form);
  }
  int64_t hidden() const { return call_.sizes.hidden_size; }
  int64_t chunk_rows() const { return call_.plan.chunk_steps * call_.rows.batch(); }
  int64_t flat_rows() const { return call_.sizes.flat_rows; }
  const T* zeros() const { return call_.zeros.values(); }
  Tensor rounded(const Tensor& gradient) const {
    return gradient.to(call_.layer.input.scalar_type());
  }
  auto d_gates_of() const {
    return [this](int64_t t, int64_t row) { return d_gates(t, row); };
  }

  // d_gates of a chunk and of the step before it in this walk, as a ring; of all steps if they are
  // requested per row.
  int64_t ring_rows() const { return (call_.plan.chunk_steps + 1) * call_.rows.batch(); }
  Tensor empty_per_row() const {
    const auto shape = call_.gates.sizes().slice(1);
    const auto options = call_.layer.input.options();
    return call_.padded() ? at::zeros(shape, options) : at::empty(shape, options);
  }
  T* d_gates(int64_t t, int64_t row) const {
    if (per_row_.defined()) return data<T>(per_row_) + call_.rows.flat(t, row) * 4 * hidden();
    const int64_t k = directed_.step_back(t) % (call_.plan.chunk_steps + 1);  // its own inverse
    return ring_.data<T>() + (k * call_.rows.batch() + row) * 4 * hidden();
  }

  template <typename Pointer, typename Find>
  std::vector<Pointer> rows_of(const Range& chunk, const Find& find) const {
    return directed_.live<Pointer>(chunk, /*back=*/true, find);
  }

  // The gradient of h_0: what comes back through each row's first step, if it is in this chunk.
  // (The cells leave the gradient of c_0.)
  void add_initial_state(const Range& chunk) const {
    std::vector<const T*> through;
    std::vector<void*> into;
    for (int64_t row = 0; row < call_.rows.live(0); ++row) {
      const int64_t t = directed_.first_step(row), k = directed_.step_back(t);
      if (k < chunk.begin || k >= chunk.end) continue;
      if (call_.rows.is_reset(t, row)) {
        std::fill_n(d_h_0(row), call_.sizes.output_size, T(A(0)));
      } else {
        through.push_back(d_gates(t, row));
        into.push_back(d_h_0(row));
      }
    }
    const EncodedRows<T> encoded(*call_.plan.gemm, through.size(), 4 * hidden());
    parallel_gemm_into<T>(encoded.encode(through), w_hh_, into, false);
  }
  T* d_h_0(int64_t row) const {
    return d_h_0_ + call_.rows.batch_index(row) * call_.sizes.output_size;
  }

  // The last rows, which start from a zero h, give W_hh nothing: unless 0 times theirs is a NaN.
  void drop_zeros(std::vector<const T*>& h_prev, const std::vector<const T*>& d_gates) const {
    const auto finite = [](T x) { return std::isfinite(A(x)); };
    while (
        !h_prev.empty() && h_prev.back() == zeros() &&
        std::all_of(d_gates[h_prev.size() - 1], d_gates[h_prev.size() - 1] + 4 * hidden(), finite))
      h_prev.pop_back();
  }

  void through_cells(const Matrix& to_cells, const void* const* from, const Worker& worker) {
    WorkerBuffers& room = workers_[worker.index];
    room.cells.run(to_cells,
                   to_cells.panels_of_group(worker.unit_group, call_.plan.grid.unit_groups), from,
                   room.step.cells.data(), room.step.count, room.encoded.zeros(zeros()));
  }

  // A worker's rows of a step.
  void find_rows(int64_t t, const Worker& worker) {
    const SortedRows& rows = call_.rows;
    WorkerBuffers& room = workers_[worker.index];
    BackwardStepRows<T>& step = room.step;
    step.count = 0;
    for (int64_t row = worker.row_group; row < rows.live(t); row += call_.plan.grid.row_groups) {
      const bool last = t == directed_.last_step(row);
      const int64_t after = directed_.step_after(t), r = step.count++;
      step.gemm_rows[r] = last || rows.is_reset(after, row)
                              ? room.encoded.zeros(zeros())
                              : room.encoded.encode(d_gates(after, row), r);
      if (projection_) step.d_h[r] = projection_->d_h(t, row);
      step.cells[r] = row_of_step(t, row, last);
    }
  }

  BackwardRow<T> row_of_step(int64_t t, int64_t row, bool last) const {
    const int64_t b = call_.rows.batch_index(row), flat = call_.rows.flat(t, row);
    const int64_t out = call_.sizes.output_size;
    BackwardRow<T> cell;
    cell.reset = call_.rows.is_reset(t, row);
    cell.d_output = or_zeros(call_.d_output, (flat * call_.sizes.directions + d_) * out);
    cell.d_h_n = last ? or_zeros(call_.d_h_n, (d_ * call_.rows.batch() + b) * out) : zeros();
    cell.d_cells = call_.d_cells.defined()
                       ? const_data<A>(call_.d_cells) + (d_ * flat_rows() + flat) * hidden()
                       : call_.zeros.states();
    cell.d_gates = d_gates(t, row);
    cell.gates = gates_ + flat * 4 * hidden();
    cell.c = cells_ + flat * hidden();
    cell.c_prev = previous_.at(t, row).c;
    cell.dc = dc_ + b * hidden();
    return cell;
  }

  const T* or_zeros(const Tensor& tensor, int64_t offset) const {
    return tensor.defined() ? const_data<T>(tensor) + offset : zeros();
  }

  const TiledBackwardCall<T>& call_;
  const int64_t d_;
  const DirectionRows directed_;
  const Matrix w_hh_;
  const PreviousState<T> previous_;
  const Tensor per_row_;
  const Scratch ring_;
  WeightGradients<T> weights_;
  const A* const cells_;
  const T* const gates_;
  T* const d_h_0_;  // dL/dh_n of rows without a step
  A* const dc_;
  std::optional<ProjectionBackward<T>> projection_;
  std::optional<Matrix> w_ih_;
  std::optional<EncodedRows<T>> to_input_;  // d_gates for it, if not those for the weights
  std::optional<SequenceRows<T>> dx_;
  std::vector<WorkerBuffers> workers_;
};

}  // namespace

template <typename T>
BackwardResult tiled_backward(const LayerCall& layer, const CpuPlan& plan,
                              const BackwardArguments& in) {
  const TiledBackwardCall<T> call(layer, plan, in);
  std::deque<TiledBackward<T>> walks;
  for (int64_t d = 0; d < layer.num_directions(); ++d) walks.emplace_back(call, d);
  const int64_t chunks = divide_up(call.rows.steps(), call.plan.chunk_steps);
  for (int64_t i = 0; i < chunks; ++i) {
    const Range chunk = part_of(call.rows.steps(), i, chunks);
    run_steps(*plan.gemm, plan.grid, walks.size(), chunk, walks[0].phases(),
              [&](int64_t d, int64_t k, int64_t phase, const Worker& worker) {
                walks[d].step(k, phase, worker);
              });
    for (auto& walk : walks) walk.end(chunk);
  }
  std::vector<Tensor> grad_weights;
  for (auto& walk : walks) walk.finish(grad_weights);
  return {call.grad_input, call.grad_h_0, call.grad_c_0.to(layer.c_0.scalar_type()), grad_weights};
}

#define FASTLSTM_INSTANTIATE(T, A, name)                                      \
  template BackwardResult tiled_backward<T>(const LayerCall&, const CpuPlan&, \
                                            const BackwardArguments&);
FASTLSTM_FOR_EACH_DTYPE(FASTLSTM_INSTANTIATE)
#undef FASTLSTM_INSTANTIATE

}  // namespace fastlstm
