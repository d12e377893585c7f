// The tiled engine forward: computes one layer, in one direction or two, in chunks of steps.
//
// For each chunk it first multiplies the input of all steps with W_ih. Then it walks over the
// steps: the product of h_{t-1} with W_hh, the cell equations, and the projection if there is one.
// A chunk is so small that its gates stay in the cache. If a step has many rows, the whole sequence
// is one chunk, and each step multiplies its own input (CpuPlan::steps_ahead is 0). All threads
// share the product of a chunk, and workers (plan.h) divide each step.
#include <ATen/EmptyTensor.h>

#include "cpu/gemm/parallel_gemm.h"
#include "cpu/stages/projection.h"
#include "cpu/walk/threads.h"
#include "cpu/walk/tiled.h"

namespace fastlstm {
namespace {

template <typename T>
struct TiledForwardCall {
  const LayerCall& layer;
  const CpuPlan& plan;
  const Sizes sizes = layer.sizes();
  const SortedRows rows{layer};
  const SequenceRows<const T> x{layer.input, rows};
  const Zeros<T> zeros{std::max(sizes.hidden_size, sizes.output_size)};
  Tensor output, h_n, c_n, cells, gates;  // cells and gates are undefined if they are not saved

  TiledForwardCall(const LayerCall& layer, const CpuPlan& plan, const ForwardOptions& options)
      : layer(layer), plan(plan) {
    const int64_t D = sizes.directions, H = sizes.hidden_size, P = sizes.output_size;
    const auto dtype = layer.input.scalar_type(), dtype_of_state = state_dtype(dtype);
    output = empty_sequence(D * P, dtype, /*per_direction=*/false);
    if (options.save_cells) cells = empty_sequence(H, dtype_of_state, /*per_direction=*/true);
    if (options.save_gates) gates = empty_sequence(4 * H, dtype, /*per_direction=*/true);
    h_n = at::detail::empty_cpu({D, sizes.batch, P}, dtype);
    c_n = at::detail::empty_cpu({D, sizes.batch, H}, dtype_of_state);
    if (!rows.has_padding()) return;
    // No step writes after the end of a row, nor to h_n and c_n of a row without steps.
    for (const Tensor& tensor : {output, cells, gates})
      if (tensor.defined()) tensor.zero_();
    h_n.copy_(layer.h_0), c_n.copy_(layer.c_0);
  }

 private:
  // Returns an uninitialized tensor [T,B,size] or [R,size]; if `per_direction`, [D,T,B,size] or
  // [D,R,size]. at::empty calls the dispatcher, which would be slow for a single step.
  Tensor empty_sequence(int64_t size, at::ScalarType dtype, bool per_direction) const {
    c10::SmallVector<int64_t, 4> shape{sizes.directions, sizes.steps, sizes.batch, size};
    if (layer.packed()) shape = {sizes.directions, sizes.flat_rows, size};
    return at::detail::empty_cpu(at::IntArrayRef(shape).slice(per_direction ? 0 : 1), dtype);
  }
};

// The walk of one direction. For each chunk call begin_chunk, then run for every step, phase and
// worker, and after the last chunk copy_final_states.
template <typename T>
class TiledForward {
  using A = State_t<T>;

 public:
  TiledForward(const TiledForwardCall<T>& call, int64_t d) : call_(call), d_(d) {
    if (weights_.w_hr) projection_.emplace(rows_.batch(), grid_, *weights_.w_hr);
    const GemmKernels& gemm = *call.plan.gemm;
    const int64_t batch = rows_.batch();
    for (int64_t k = 0; k < grid_.workers(); ++k)
      buffers_.push_back({StepRows<ForwardRow<T>>(batch),
                          {gemm, steps_ahead_ ? 0 : batch, sizes_.input_size},
                          {gemm, batch, sizes_.output_size},
                          {call.plan, weights_.w_hh, hidden()}});
  }

  int64_t phases() const { return 1 + projection_.has_value(); }

  // Computes x W_ih^T + b for all steps of the chunk, unless each step multiplies its own input.
  void begin_chunk(const Range& chunk) {
    chunk_ = chunk;
    if (!steps_ahead_) return;
    const auto x =
        order_.live_pointers(chunk, [&](int64_t t, int64_t row) { return call_.x.at(t, row); });
    const auto gates = order_.live_pointers(
        chunk, [&](int64_t t, int64_t row) -> void* { return x_gates(t, row); });
    parallel_gemm(encoded_x_.encode(x), weights_.w_ih, {gates.data(), weights_.bias.data<void>()});
  }

  // Runs a worker's part of step k of the walk. Phase 0: the cells. Phase 1: the projection.
  void run(int64_t k, int64_t phase, const Worker& worker) {
    if (phase == 0) return run_cells(order_.time_or_k(k), worker);
    projection_->run(buffers_[worker.index].step, worker);
  }

  void copy_final_states() {
    for (int64_t row = 0; row < rows_.live_rows(0); ++row) {
      const int64_t t = order_.last_time(row), b = rows_.batch_index(row);
      std::copy_n(output(t, row), sizes_.output_size, h_n_ + b * sizes_.output_size);
      if (cells_)
        std::copy_n(cells_ + rows_.flat_index(t, row) * hidden(), hidden(), c_n_ + b * hidden());
    }
  }

 private:
  // The memory of one worker, allocated once for the whole walk.
  struct WorkerBuffers {
    StepRows<ForwardRow<T>> step;
    EncodedRows<T> encoded_x, encoded_h;
    CellsForward<T> cells;
  };

  int64_t hidden() const { return sizes_.hidden_size; }

  T* output(int64_t t, int64_t row) const {  // [P]
    return output_ + rows_.flat_index(t, row) * sizes_.directions * sizes_.output_size;
  }

  // The input part of the gates of a row, in gate order.
  A* x_gates(int64_t t, int64_t row) const {
    const int64_t step_in_chunk = order_.time_or_k(t) - chunk_.begin;
    return x_gates_.data<A>() + (step_in_chunk * rows_.batch() + row) * x_gates_stride_;
  }

  void run_cells(int64_t t, const Worker& worker) {
    auto& [step, encoded_x, encoded_h, cells] = buffers_[worker.index];
    // All zero rows of h share one encoded row, which the cells recognize by its address.
    const void* const zeros = encoded_h.zeros(call_.zeros.values());
    step.count = 0;
    rows_.for_rows_of_group(t, worker.row_group, grid_.row_groups, [&](int64_t row) {
      const int64_t r = step.count++;
      const auto before = previous_.at(t, row);
      step.cell_rows[r] = cell_row(t, row, before.c);
      if (projection_) step.h[r] = output(t, row);
      if (!steps_ahead_) step.x[r] = encoded_x.encode(call_.x.at(t, row), r);
      step.gemm_rows[r] = before.h == call_.zeros.values() ? zeros : encoded_h.encode(before.h, r);
    });
    cells.run(weights_, worker, step, zeros);
  }

  ForwardRow<T> cell_row(int64_t t, int64_t row, const A* c_prev) const {
    const int64_t flat = rows_.flat_index(t, row);
    return {.x_gates = steps_ahead_ ? x_gates(t, row) : nullptr,
            .gates = gates_ ? gates_ + flat * 4 * hidden() : nullptr,
            .c_prev = c_prev,
            .c = cells_ ? cells_ + flat * hidden() : c_n_ + rows_.batch_index(row) * hidden(),
            .h = projection_ ? projection_->unprojected(row) : output(t, row)};
  }

  const TiledForwardCall<T>& call_;
  const int64_t d_;
  const Sizes& sizes_ = call_.sizes;
  const SortedRows& rows_ = call_.rows;
  const ThreadGrid& grid_ = call_.plan.grid;
  const int64_t steps_ahead_ = call_.plan.steps_ahead;
  const StepOrder order_{rows_, d_ == 1, /*backward=*/false};
  const ForwardWeights weights_ = forward_weights<A>(call_.plan, call_.layer, d_);
  // A row of x_gates has all lanes, because a cell reads whole vectors.
  const int64_t x_gates_stride_ = 4 * round_up(hidden(), weights_.order.lanes);
  const Scratch x_gates_ =  // [steps_ahead,B,x_gates_stride] of the chunk
      scratch<A>(steps_ahead_ * rows_.batch() * x_gates_stride_);
  const EncodedRows<T> encoded_x_{*call_.plan.gemm, steps_ahead_ * rows_.batch(),
                                  sizes_.input_size};
  Range chunk_;
  // The results of this direction.
  T* const output_ = data<T>(call_.output) + d_ * sizes_.output_size;  // [R,P], D * P apart
  A* const cells_ = direction_data<A>(call_.cells, d_);                // [R,H], or nullptr
  T* const gates_ = direction_data<T>(call_.gates, d_);                // [R,4H], or nullptr
  T* const h_n_ = direction_data<T>(call_.h_n, d_);                    // [B,P]
  A* const c_n_ = direction_data<A>(call_.c_n, d_);  // [B,H]; without cells_, the last c of a row
  const PreviousState<T> previous_{call_.layer, order_, d_, output_, cells_, c_n_, call_.zeros};
  std::optional<ProjectionForward<T>> projection_;
  std::vector<WorkerBuffers> buffers_;  // by Worker::index
};

template <typename T>
ForwardResult run_forward(const LayerCall& layer, const CpuPlan& plan,
                          const ForwardOptions& options) {
  const TiledForwardCall<T> call(layer, plan, options);
  const int64_t steps = call.rows.steps(), together = plan.grid.directions;
  const int64_t chunk_steps = plan.steps_ahead ? plan.steps_ahead : steps;
  // Directions that do not run at the same time do not share the caches: one ends, one begins.
  for (int64_t first = 0; first < call.sizes.directions; first += together) {
    // Without malloc, which is slow for a single step.
    std::array<std::optional<TiledForward<T>>, kMaxDirections> walks;
    for (int64_t d = 0; d < together; ++d) walks[d].emplace(call, first + d);
    for (int64_t begin = 0; begin < steps; begin += chunk_steps) {
      const Range chunk{begin, std::min(begin + chunk_steps, steps)};
      for (int64_t d = 0; d < together; ++d) walks[d]->begin_chunk(chunk);
      run_steps(plan, together, chunk, walks);
    }
    for (int64_t d = 0; d < together; ++d) walks[d]->copy_final_states();
  }
  return {call.output, call.h_n, as_dtype(call.c_n, layer.c_0.scalar_type()), call.cells,
          call.gates};
}

}  // namespace

ForwardResult tiled_forward(const LayerCall& layer, const CpuPlan& plan,
                            const ForwardOptions& options) {
  return dispatch_dtype(plan.dtype,
                        [&](auto t) { return run_forward<decltype(t)>(layer, plan, options); });
}

}  // namespace fastlstm
