// The rows of a layer as tensors of ATen. No function waits for a GPU, for the sake of CUDA graphs.
#pragma once
#include <algorithm>

#include "core/layer_call.h"
#include "core/operators.h"

namespace fastlstm {

// Returns a sequence [T,B,size] or [R,size] as contiguous flat rows [R,size].
inline Tensor flat(const Tensor& sequence, int64_t rows) {
  return sequence.contiguous().view({rows, sequence.size(-1)});
}

inline Tensor contiguous_or_undefined(const OptionalTensor& tensor) {
  return tensor ? tensor->contiguous() : Tensor();
}

// A view of neighboring rows of a matrix [R,size], which moves from step to step. A new view for
// each step would take three operators of ATen.
class MovingRows {
 public:
  explicit MovingRows(const Tensor& matrix)
      : matrix_(matrix), rows_(matrix.defined() ? matrix.alias() : Tensor()) {}

  Tensor& at(int64_t first, int64_t count) {  // the next call moves the same view
    rows_.unsafeGetTensorImpl()->set_sizes_and_strides(
        {count, matrix_.size(1)}, matrix_.strides(),
        matrix_.storage_offset() + first * matrix_.stride(0));
    return rows_;
  }

 private:
  Tensor matrix_, rows_;
};

// Returns lengths[b] - t as [T,B,1]: how many steps row b still has, 0 or less after its end.
inline Tensor steps_left(const LayerCall& layer) {
  const auto t = at::arange(layer.steps.expect_int(), layer.lengths->options());
  return (layer.lengths->unsqueeze(0) - t.unsqueeze(1)).unsqueeze(2);
}

// Returns a sequence [T,B,size] with zeros after the end of each row. A NaN there would otherwise
// reach the gradient of a weight as 0 * NaN.
inline Tensor without_padding(const LayerCall& layer, const Tensor& sequence) {
  return layer.lengths ? sequence.masked_fill(steps_left(layer).le(0), 0) : sequence;
}

// Returns the state [R,size] before every flat row. At the first step of a row this is `initial`
// [B,size] (h_0 or c_0), afterwards the row of `states` [R,size] of the previous step of the walk.
// It is 0 if the step resets the row or the row has ended. The result concatenates ranges of rows:
// two for padded data and at most 2 B for packed data, as adjacent ranges are merged.
inline Tensor state_before(const LayerCall& layer, int64_t d, const Tensor& states,
                           const Tensor& initial) {
  struct RowRange {
    const Tensor* source;
    int64_t first, count;
  };
  std::vector<RowRange> ranges = {{&states, 0, 0}};
  const auto append = [&](const Tensor& source, int64_t first, int64_t count) {
    RowRange& last = ranges.back();
    if (last.source == &source && last.first + last.count == first)
      last.count += count;
    else if (count > 0)
      ranges.push_back({&source, first, count});
  };
  std::vector<WalkStep> steps = walk(layer, d == 1);
  if (d == 1) std::reverse(steps.begin(), steps.end());  // to time order
  for (const WalkStep& step : steps) {
    const int64_t carried = std::min(step.rows, step.prev_rows);
    append(states, step.prev_offset, carried);
    append(initial, carried, step.rows - carried);
  }
  std::vector<Tensor> rows;
  for (const RowRange& range : ranges)
    rows.push_back(range.source->narrow(0, range.first, range.count));
  Tensor before = at::cat(rows);
  if (layer.packed()) return before;
  before = before.view({layer.steps.expect_int(), layer.batch.expect_int(), states.size(-1)});
  if (layer.lengths) {
    const Tensor left = steps_left(layer);  // 1 at the last step of a row
    if (d == 1)
      before = at::where(left.eq(1), initial, before).contiguous();  // initial may have any strides
    before.masked_fill_(left.le(0), 0);
  }
  if (layer.reset) before.masked_fill_(layer.reset->unsqueeze(2), 0);
  return before.view(states.sizes());
}

// Returns the rows [R,P] that W_hh multiplies: h_{t-1} of every flat row, times h_mask.
inline Tensor multiplied_hidden(const LayerCall& layer, int64_t d, const Tensor& output) {
  const Tensor h_prev = state_before(layer, d, output, layer.h_0.select(0, d));
  if (!layer.h_mask) return h_prev;
  const Tensor mask = layer.h_mask->select(0, d);
  if (!layer.packed()) {
    h_prev.view({layer.steps.expect_int(), mask.size(0), mask.size(1)}).mul_(mask);
    return h_prev;
  }
  std::vector<Tensor> masks;
  for (const WalkStep& step : walk(layer, false)) masks.push_back(mask.narrow(0, 0, step.rows));
  return h_prev * at::cat(masks);
}

// Returns dL/dh_n or dL/dc_n, 0 if it was not given, in new memory that backward updates in place.
inline Tensor final_state_gradient(const OptionalTensor& grad, const Tensor& state,
                                   const at::TensorOptions& options) {
  return grad ? at::empty(state.sizes(), options).copy_(*grad) : at::zeros(state.sizes(), options);
}

}  // namespace fastlstm
