// The forward walk, of one direction or of two. In chunks of steps: the input's part of the gates
// of the whole chunk, then step by step the product with W_hh and the cells, while the chunk is in
// cache. With many rows in a step its input is multiplied beside h instead.
#include <algorithm>
#include <deque>
#include <numeric>
#include <optional>

#include "core/torch_versions.h"
#include "cpu/gemm/encoded_rows.h"
#include "cpu/layer/packed_direction.h"
#include "cpu/layer/previous_state.h"
#include "cpu/layer/rows.h"
#include "cpu/stages/cells.h"
#include "cpu/stages/projection.h"
#include "cpu/walk/threads.h"
#include "cpu/walk/tiled.h"

namespace fastlstm {
namespace {

template <typename T>
class ForwardWalk {
  using A = State_t<T>;

 public:
  ForwardWalk(const Layer& layer, const CpuPlan& plan, const Rows& rows, const ForwardTensors& to,
              int64_t d)
      : sizes_(layer.sizes()),
        rows_(rows),
        directed_(rows, d == 1),
        grid_(plan.grid),
        x_(layer.input, rows),
        weights_(pack_direction<A>(plan, layer, d, plan.grid.unit_groups)),
        ahead_(plan.steps_ahead),
        x_gates_(scratch<A>(ahead_ * rows.batch() * weights_.w_ih.N())),
        encoded_x_(*plan.product, ahead_ * rows.batch(), sizes_.input_size),
        zeros_(std::max(sizes_.hidden_size, sizes_.output_size)),
        previous_(layer, directed_, d, to.output, to.cells, data<A>(to.c_n[d]), zeros_),
        output_(data<T>(to.output) + d * sizes_.output_size),
        cells_(to.cells.defined() ? data<A>(to.cells[d]) : nullptr),
        gates_(to.gates.defined() ? data<T>(to.gates[d]) : nullptr),
        h_n_(data<T>(to.h_n[d])),
        c_n_(data<A>(to.c_n[d])) {
    if (weights_.w_hr) projection_.emplace(directed_, sizes_.hidden_size, grid_, *weights_.w_hr);
    for (int64_t k = 0; k < grid_.members(); ++k) members_.emplace_back(plan, rows.batch(), sizes_);
  }

  int64_t phases() const { return projection_ ? 2 : 1; }

  // In this order: before the steps of a chunk, a member's part of step k of the walk, and at the
  // end of the walk.
  void begin(const Range& chunk) {
    chunk_ = chunk;
    if (ahead_) multiply_input(chunk);
  }
  void step(int64_t k, int64_t phase, const Member& member) {
    const int64_t t = directed_.step(k);
    if (phase == 0) return step(t, member);
    projection_->forward(t, member, [&](int64_t t, int64_t row) { return output(t, row); });
  }
  void keep_last_states() {
    for (int64_t row = 0; row < rows_.live(0); ++row) {
      const int64_t t = directed_.last_step(row), b = rows_.batch_index(row);
      std::copy_n(output(t, row), sizes_.output_size, h_n_ + b * sizes_.output_size);
      if (cells_)
        std::copy_n(cells_ + rows_.flat(t, row) * hidden(), hidden(), c_n_ + b * hidden());
    }
  }

 private:
  // What a thread needs, allocated before the walk: within OpenMP's threads an allocation that
  // fails would end the process.
  struct Room {
    Room(const CpuPlan& plan, int64_t batch, const Sizes& sizes)
        : x(batch),
          h_prev(batch),
          encoded_x(*plan.product, plan.steps_ahead ? 0 : batch, sizes.input_size),
          encoded_h(*plan.product, batch, sizes.output_size),
          rows(batch),
          cells(plan, sizes.hidden_size) {}
    std::vector<const void*> x, h_prev;
    EncodedRows<T> encoded_x, encoded_h;
    std::vector<ForwardRow<T>> rows;
    CellsForward<T> cells;
  };

  int64_t hidden() const { return sizes_.hidden_size; }

  T* output(int64_t t, int64_t row) const {
    return output_ + rows_.flat(t, row) * sizes_.directions * sizes_.output_size;
  }

  A* x_gates(int64_t t, int64_t row) const {
    const int64_t k = directed_.step(t) - chunk_.begin;  // step is its own inverse
    return data<A>(x_gates_) + (k * rows_.batch() + row) * weights_.w_ih.N();
  }

  // x W_ih^T + b of a chunk of steps.
  void multiply_input(const Range& chunk) {
    const auto x = directed_.live<const T*>(chunk, false,
                                            [&](int64_t t, int64_t row) { return x_.at(t, row); });
    const auto to = directed_.live<void*>(chunk, false,
                                          [&](int64_t t, int64_t row) { return x_gates(t, row); });
    multiply(encoded_x_.encode(x), weights_.w_ih, to, false, weights_.bias_data());
  }

  // One step of a member's rows and units.
  void step(int64_t t, const Member& member) {
    Room& room = members_[member.index];
    const void* const zeros = room.encoded_h.zeros(zeros_.values());
    int64_t count = 0;
    for (int64_t row = member.row_group; row < rows_.live(t); row += grid_.row_groups, ++count) {
      const auto before = previous_.at(t, row);
      room.rows[count] = row_of_step(t, row, before);
      if (!ahead_) room.x[count] = room.encoded_x.encode(x_.at(t, row), count);
      room.h_prev[count] = before.h == zeros_.values()  // they stay recognizable
                               ? zeros
                               : room.encoded_h.encode(before.h, count);
    }
    room.cells.run(weights_, room.cells.tiles(member.unit_group, grid_.unit_groups),
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

  const Sizes sizes_;
  const Rows& rows_;
  const DirectedRows directed_;
  const ThreadGrid grid_;
  const SequenceRows<const T> x_;
  const PackedDirection weights_;
  const int64_t ahead_;
  const Tensor x_gates_;
  const EncodedRows<T> encoded_x_;
  Range chunk_{0, 0};
  const Zeros<T> zeros_;
  const PreviousState<T> previous_;
  std::optional<ProjectionForward<T>> projection_;
  T* const output_;
  A* const cells_;
  T* const gates_;
  T* const h_n_;
  A* const c_n_;
  std::vector<Room> members_;
};

}  // namespace

Precision precision() {
  const auto requested = rnn_precision();
  return requested == kTf32   ? Precision::kTf32
         : requested == kBf16 ? Precision::kBf16
                              : Precision::kFloat32;
}

CpuTask task_of(const Layer& layer) {
  CpuTask task = task_of(layer.input.scalar_type(), layer.sizes());
  task.projects = layer.projects();
  task.only_stepwise = layer.normalizes() || layer.h_mask;
  task.only_dense = !layer.packed() && !layer.lengths;
  task.resets = layer.reset.has_value();
  task.precision = precision();
  if (layer.lengths) {
    const Tensor lengths = layer.lengths->contiguous();
    const int64_t* first = lengths.const_data_ptr<int64_t>();
    task.rows = std::accumulate(first, first + task.batch, int64_t(0));
  }
  return task;
}

template <typename T>
ForwardResult tiled_forward(const Layer& layer, const CpuPlan& plan, bool save_cells,
                            bool save_gates) {
  if (plan.one_step) return one_step_forward<T>(layer, plan, save_cells, save_gates);
  const Rows rows(layer);
  const ForwardTensors to(layer, save_cells, save_gates);
  if (rows.total() <
      layer.flat_rows.expect_int())  // no step writes to what is after the end of a row
    for (const Tensor& tensor : {to.output, to.cells, to.gates})
      if (tensor.defined()) tensor.zero_();
  std::deque<ForwardWalk<T>> walks;
  for (int64_t d = 0; d < layer.num_directions(); ++d) walks.emplace_back(layer, plan, rows, to, d);
  const int64_t chunk_steps = plan.steps_ahead ? plan.steps_ahead : rows.steps();
  for (int64_t begin = 0; begin < rows.steps(); begin += chunk_steps) {
    const Range chunk{begin, std::min(begin + chunk_steps, rows.steps())};
    for (auto& walk : walks) walk.begin(chunk);
    walk_steps(*plan.product, plan.grid, walks.size(), chunk, walks[0].phases(),
               [&](int64_t d, int64_t k, int64_t phase, const Member& member) {
                 walks[d].step(k, phase, member);
               });
  }
  for (auto& walk : walks) walk.keep_last_states();
  return to.result(layer);
}

#define FASTLSTM_INSTANTIATE(T, A, name) \
  template ForwardResult tiled_forward<T>(const Layer&, const CpuPlan&, bool, bool);
FASTLSTM_FOR_EACH_DTYPE(FASTLSTM_INSTANTIATE)

}  // namespace fastlstm
