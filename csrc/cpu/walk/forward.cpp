// The forward walk, of one direction or of two. In chunks of steps: the input's part of the gates
// of the whole chunk, then step by step the product with W_hh and the cells, while the chunk is in
// cache. With many rows in a step its input is multiplied beside h instead.
#include <ATen/EmptyTensor.h>

#include <algorithm>
#include <optional>

#include "cpu/gemm/encoded_rows.h"
#include "cpu/gemm/parallel_gemm.h"
#include "cpu/rows.h"
#include "cpu/stages/cells.h"
#include "cpu/stages/projection.h"
#include "cpu/walk/threads.h"
#include "cpu/walk/tiled.h"

namespace fastlstm {
namespace {

// The part of a call that both directions share, and its results. Cells and gates that are not
// saved are undefined.
template <typename T>
struct TiledForwardCall {
  using A = State_t<T>;

  const LayerCall& layer;
  const CpuPlan& plan;
  const Sizes sizes;
  const SortedRows rows;
  const SequenceRows<const T> x;
  const InitialState<T> initial;
  const Zeros<T> zeros;
  Tensor output, h_n, c_n, cells, gates;

  TiledForwardCall(const LayerCall& layer, const CpuPlan& plan, bool save_cells, bool save_gates)
      : layer(layer),
        plan(plan),
        sizes(layer.sizes()),
        rows(layer),
        x(layer.input, rows),
        initial(layer),
        zeros(std::max(sizes.hidden_size, sizes.output_size)) {
    const int64_t D = sizes.directions, H = sizes.hidden_size, P = sizes.output_size;
    const auto dtype = layer.input.scalar_type(), state = state_dtype(dtype);
    output = sequence(D * P, dtype, /*per_direction=*/false);
    if (save_cells) cells = sequence(H, state);
    if (save_gates) gates = sequence(4 * H, dtype);
    h_n = empty({D, sizes.batch, P}, dtype), c_n = empty({D, sizes.batch, H}, state);
    if (rows.total() == sizes.flat_rows && rows.live(0) == sizes.batch) return;
    // No step writes to what is after the end of a row, nor to the states of a row without one.
    for (const Tensor& tensor : {output, cells, gates})
      if (tensor.defined()) tensor.zero_();
    h_n.copy_(initial.h_0), c_n.copy_(initial.c_0);
  }

 private:
  static Tensor empty(at::IntArrayRef sizes, at::ScalarType dtype) {  // without the dispatcher
    return at::detail::empty_cpu(sizes, dtype);
  }
  Tensor sequence(int64_t size, at::ScalarType dtype, bool per_direction = true) const {
    c10::SmallVector<int64_t, 4> shape;
    if (per_direction) shape.push_back(sizes.directions);
    if (layer.packed())
      shape.push_back(sizes.flat_rows);
    else
      shape.append({sizes.steps, sizes.batch});
    shape.push_back(size);
    return empty(shape, dtype);
  }
};

template <typename T>
class TiledForward {
  using A = State_t<T>;

 public:
  TiledForward(const TiledForwardCall<T>& call, int64_t d)
      : call_(call),
        sizes_(call.sizes),
        rows_(call.rows),
        directed_(rows_, d == 1),
        grid_(call.plan.grid),
        weights_(forward_weights<A>(call.plan, call.layer, d)),
        ahead_(call.plan.steps_ahead),
        x_gates_(scratch<A>(ahead_ * rows_.batch() * weights_.w_ih.N())),
        encoded_x_(*call.plan.gemm, ahead_ * rows_.batch(), sizes_.input_size),
        output_(data<T>(call.output)),
        cells_(call.cells.defined() ? data<A>(call.cells) : nullptr),
        gates_(call.gates.defined() ? data<T>(call.gates) : nullptr),
        h_n_(data<T>(call.h_n) + d * rows_.batch() * sizes_.output_size),
        c_n_(data<A>(call.c_n)),
        previous_(call.initial, directed_, sizes_, d, output_, cells_, call.zeros, c_n_) {
    output_ += d * sizes_.output_size, c_n_ += d * rows_.batch() * hidden();
    if (cells_) cells_ += d * sizes_.flat_rows * hidden();
    if (gates_) gates_ += d * sizes_.flat_rows * 4 * hidden();
    if (weights_.w_hr) projection_.emplace(directed_, hidden(), grid_, *weights_.w_hr);
    workers_.reserve(grid_.workers());
    for (int64_t k = 0; k < grid_.workers(); ++k)
      workers_.emplace_back(call.plan, rows_.batch(), sizes_);
  }

  int64_t phases() const { return projection_ ? 2 : 1; }

  // In this order: before the steps of a chunk, a worker's part of step k of the walk, and at the
  // end of the walk.
  void begin(const Range& chunk) {
    chunk_ = chunk;
    if (ahead_) multiply_input(chunk);
  }
  void step(int64_t k, int64_t phase, const Worker& worker) {
    const int64_t t = directed_.step(k);
    if (phase == 0) return step(t, worker);
    projection_->forward(t, worker, [&](int64_t t, int64_t row) { return output(t, row); });
  }
  void copy_final_states() {
    for (int64_t row = 0; row < rows_.live(0); ++row) {
      const int64_t t = directed_.last_step(row), b = rows_.batch_index(row);
      std::copy_n(output(t, row), sizes_.output_size, h_n_ + b * sizes_.output_size);
      if (cells_)
        std::copy_n(cells_ + rows_.flat(t, row) * hidden(), hidden(), c_n_ + b * hidden());
    }
  }

 private:
  // The memory of a thread, allocated before the walk: within OpenMP's threads an allocation that
  // fails would end the process.
  struct WorkerBuffers {
    WorkerBuffers(const CpuPlan& plan, int64_t batch, const Sizes& sizes)
        : x(batch),
          h_prev(batch),
          encoded_x(*plan.gemm, plan.steps_ahead ? 0 : batch, sizes.input_size),
          encoded_h(*plan.gemm, batch, sizes.output_size),
          rows(batch),
          cells(plan, sizes.hidden_size) {}
    c10::SmallVector<const void*, 8> x, h_prev;
    EncodedRows<T> encoded_x, encoded_h;
    c10::SmallVector<ForwardRow<T>, 8> rows;
    CellsForward<T> cells;
  };

  int64_t hidden() const { return sizes_.hidden_size; }

  T* output(int64_t t, int64_t row) const {
    return output_ + rows_.flat(t, row) * sizes_.directions * sizes_.output_size;
  }

  A* x_gates(int64_t t, int64_t row) const {
    const int64_t k = directed_.step(t) - chunk_.begin;  // step is its own inverse
    return x_gates_.data<A>() + (k * rows_.batch() + row) * weights_.w_ih.N();
  }

  // x W_ih^T + b of a chunk of steps.
  void multiply_input(const Range& chunk) {
    const auto x = directed_.live<const T*>(
        chunk, false, [&](int64_t t, int64_t row) { return call_.x.at(t, row); });
    const auto to = directed_.live<void*>(chunk, false,
                                          [&](int64_t t, int64_t row) { return x_gates(t, row); });
    parallel_gemm(encoded_x_.encode(x), weights_.w_ih, {to.data(), weights_.bias.data<void>()});
  }

  // One step of a worker's rows and units.
  void step(int64_t t, const Worker& worker) {
    WorkerBuffers& room = workers_[worker.index];
    const void* const zeros = room.encoded_h.zeros(call_.zeros.values());
    int64_t count = 0;
    for (int64_t row = worker.row_group; row < rows_.live(t); row += grid_.row_groups, ++count) {
      const auto before = previous_.at(t, row);
      room.rows[count] = row_of_step(t, row, before);
      if (!ahead_) room.x[count] = room.encoded_x.encode(call_.x.at(t, row), count);
      room.h_prev[count] = before.h == call_.zeros.values()  // they stay recognizable
                               ? zeros
                               : room.encoded_h.encode(before.h, count);
    }
    room.cells.run(weights_, room.cells.tiles(worker.unit_group, grid_.unit_groups),
                   ahead_ ? nullptr : room.x.data(), room.h_prev.data(), room.rows.data(), count,
                   zeros);
  }

  ForwardRow<T> row_of_step(int64_t t, int64_t row,
                            const typename PreviousState<T>::State& before) const {
    const int64_t flat = rows_.flat(t, row);
    ForwardRow<T> cell;
    cell.x_gates = ahead_ ? x_gates(t, row) : nullptr;
    cell.gates = gates_ ? gates_ + flat * 4 * hidden() : nullptr;
    cell.c_prev = before.c;
    cell.c = cells_ ? cells_ + flat * hidden() : c_n_ + rows_.batch_index(row) * hidden();
    cell.h = projection_ ? projection_->unprojected(row) : output(t, row);
    return cell;
  }

  const TiledForwardCall<T>& call_;
  const Sizes& sizes_;
  const SortedRows& rows_;
  const DirectionRows directed_;
  const ThreadGrid grid_;
  const ForwardWeights weights_;
  const int64_t ahead_;
  const Scratch x_gates_;
  const EncodedRows<T> encoded_x_;
  Range chunk_{};
  T* output_;
  A* cells_;
  T* gates_;
  T* const h_n_;
  A* c_n_;
  const PreviousState<T> previous_;
  std::optional<ProjectionForward<T>> projection_;
  std::vector<WorkerBuffers> workers_;
};

}  // namespace

template <typename T>
ForwardResult tiled_forward(const LayerCall& layer, const CpuPlan& plan, bool save_cells,
                            bool save_gates) {
  const TiledForwardCall<T> call(layer, plan, save_cells, save_gates);
  std::optional<TiledForward<T>> walks[2];
  const int64_t directions = call.sizes.directions, steps = call.rows.steps();
  for (int64_t d = 0; d < directions; ++d) walks[d].emplace(call, d);
  const int64_t chunk_steps = plan.steps_ahead ? plan.steps_ahead : steps;
  for (int64_t begin = 0; begin < steps; begin += chunk_steps) {
    const Range chunk{begin, std::min(begin + chunk_steps, steps)};
    for (int64_t d = 0; d < directions; ++d) walks[d]->begin(chunk);
    run_steps(*plan.gemm, plan.grid, directions, chunk, walks[0]->phases(),
              [&](int64_t d, int64_t k, int64_t phase, const Worker& worker) {
                walks[d]->step(k, phase, worker);
              });
  }
  for (int64_t d = 0; d < directions; ++d) walks[d]->copy_final_states();
  return {call.output, call.h_n, as_dtype(call.c_n, layer.c_0.scalar_type()), call.cells,
          call.gates};
}

#define FASTLSTM_INSTANTIATE(T, A, name) \
  template ForwardResult tiled_forward<T>(const LayerCall&, const CpuPlan&, bool, bool);
FASTLSTM_FOR_EACH_DTYPE(FASTLSTM_INSTANTIATE)
#undef FASTLSTM_INSTANTIATE

}  // namespace fastlstm
