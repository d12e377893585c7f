// The rows of a layer as tensors: flat in time order, one step of them, those of the step before.
// No host synchronization here, so a CUDA graph can capture it.
#pragma once
#include <algorithm>
#include <vector>

#include "core/layer_call.h"
#include "core/operators.h"
#include "equations/lstm_math.h"

namespace fastlstm {

// [R,...] row-major in time order, however the caller's strides run.
inline Tensor flat(const Tensor& sequence, int64_t rows) {
  return sequence.contiguous().view({rows, sequence.size(-1)});
}

inline Tensor contiguous_or_undefined(const OptionalTensor& tensor) {
  return tensor && tensor->defined() ? tensor->contiguous() : Tensor();
}

// A view of some rows of a matrix [R,size], which is moved from step to step: to make a new view
// for each step takes three operators of ATen.
class MovingRows {
 public:
  explicit MovingRows(const Tensor& matrix)
      : matrix_(matrix), rows_(matrix.defined() ? matrix.alias() : Tensor()) {}

  // [count,size] from row `first` on, until the next call.
  Tensor& at(int64_t first, int64_t count) {
    rows_.unsafeGetTensorImpl()->set_sizes_and_strides(
        {count, matrix_.size(1)}, matrix_.strides(),
        matrix_.storage_offset() + first * matrix_.stride(0));
    return rows_;
  }

 private:
  Tensor matrix_, rows_;
};

// [T,B,1] whether a row is alive at a step, or undefined without lengths.
inline Tensor live_mask(const LayerCall& layer) {
  if (!layer.lengths) return {};
  const auto steps = at::arange(layer.steps.expect_int(), layer.lengths->options());
  return steps.unsqueeze(1).lt(layer.lengths->unsqueeze(0)).unsqueeze(2);
}

// A sequence [T,B,size] with zeros after the end of each row: whatever is there (NaN, say) must not
// reach a weight's gradient as 0 * NaN.
inline Tensor without_padding(const LayerCall& layer, const Tensor& sequence) {
  const Tensor live = live_mask(layer);
  return live.defined() ? sequence.masked_fill(live.logical_not(), 0) : sequence;
}

// The state before every flat row, from the states [R,size] after them: those one step earlier in
// walking order, the initial state [B,size] where a row starts, zero where it was reset and at dead
// positions. Pieces of both that lie one after the other are one, so that there are few of them:
// two of padded data, at most two for each row of packed data.
inline Tensor previous(const LayerCall& layer, int64_t d, const Tensor& states,
                       const Tensor& initial) {
  struct Piece {
    const Tensor* of;
    int64_t first, rows;
  };
  std::vector<Piece> pieces = {{&states, 0, 0}};
  const auto append = [&](const Tensor& of, int64_t first, int64_t rows) {
    Piece& last = pieces.back();
    if (last.of == &of && last.first + last.rows == first)
      last.rows += rows;
    else if (rows > 0)
      pieces.push_back({&of, first, rows});
  };
  std::vector<WalkStep> steps = walk(layer, d == 1);
  if (d == 1) std::reverse(steps.begin(), steps.end());  // as the flat rows lie
  for (const WalkStep& at : steps) {
    const int64_t carried = std::min(at.rows, at.prev_rows);
    append(states, at.prev_offset, carried);
    append(initial, carried, at.rows - carried);
  }
  std::vector<Tensor> rows;
  for (const Piece& piece : pieces) rows.push_back(piece.of->narrow(0, piece.first, piece.rows));
  Tensor before = at::cat(rows);
  if (layer.packed()) return before;
  before = before.view({layer.steps.expect_int(), layer.batch.expect_int(), states.size(-1)});
  if (layer.lengths && d == 1) {  // in reverse a row starts at its last real step
    const auto t = at::arange(before.size(0), layer.lengths->options()).view({-1, 1, 1});
    const Tensor starts = t.eq(layer.lengths->view({1, -1, 1}) - 1);
    before = at::where(starts, initial, before).contiguous();  // initial may have any strides
  }
  if (layer.lengths) before.masked_fill_(live_mask(layer).logical_not(), 0);
  if (layer.reset) before.masked_fill_(layer.reset->unsqueeze(2), 0);
  return before.view(states.sizes());
}

// h_{t-1} of every flat row [R,P] as W_hh sees it: times h_mask.
inline Tensor previous_hidden(const LayerCall& layer, int64_t d, const Tensor& output) {
  const Tensor h_prev = previous(layer, d, output, layer.h_0.select(0, d));
  if (!layer.h_mask) return h_prev;
  const Tensor mask = layer.h_mask->select(0, d);
  if (!layer.packed()) {
    h_prev.view({layer.steps.expect_int(), mask.size(0), mask.size(1)}).mul_(mask);
    return h_prev;
  }
  std::vector<Tensor> of_steps;
  for (const WalkStep& at : walk(layer, false)) of_steps.push_back(mask.narrow(0, 0, at.rows));
  return h_prev * at::cat(of_steps);
}

// The gradient of a state at the end of the walk, in memory of its own: dL/dh_n or dL/dc_n, or
// zeros.
inline Tensor final_state_gradient(const OptionalTensor& grad, const Tensor& state,
                                   const at::TensorOptions& options) {
  return grad ? grad->to(options, /*non_blocking=*/false, /*copy=*/true).contiguous()
              : at::zeros(state.sizes(), options);
}

}  // namespace fastlstm
