// One call of the op, checked and unpacked: what every engine works on.
//
// Sizes: T steps, B batch rows, I input_size, H hidden_size, P output size (proj_size or H),
// D directions (direction 1 walks in reverse). A padded [T,B] batch and packed data are both seen
// as R flat rows in time order (R = T * B, or the length of the packed data).
#pragma once
#include <string>
#include <vector>

#include "core/call.h"
#include "dtype_list.h"

namespace fastlstm {

// The sizes above as numbers, for engines.
struct Sizes {
  int64_t directions, steps, batch, flat_rows, input_size, hidden_size, output_size;
};

// input [T,B,I] or [R,I]; h_0 [D,B,P]; c_0 [D,B,H], of input's dtype or state_dtype;
// h_mask [D,B,P]: what h_{t-1} is multiplied with on its way into W_hh.
struct Layer : LstmCall {
  std::vector<Direction> directions;  // the weights, of which `weights` has none any more
  WeightLayout kinds;                 // `layout`
  c10::SymInt steps, batch, flat_rows, input_size, hidden_size, output_size;

  bool packed() const { return batch_sizes.has_value(); }
  bool projects() const { return kinds.projects; }
  bool normalizes() const { return kinds.normalizes; }
  std::string options() const;  // the names of what the call has beyond a plain LSTM, for messages
  bool is_prepacked() const { return !kinds.format.empty(); }
  bool has_bias() const { return kinds.bias; }
  int64_t num_directions() const { return static_cast<int64_t>(directions.size()); }
  Sizes sizes() const;
  // [T,B,size] or [R,size]; with the directions in front for what is saved of each.
  std::vector<c10::SymInt> sequence(const c10::SymInt& size, bool per_direction) const;
  at::TensorOptions state_options() const;
};

// The results of forward, before they are computed. The states begin as h_0 and c_0, in the dtype
// of the state, unless `copies_state` is false. Cells and gates that are not saved are undefined.
struct ForwardTensors {
  Tensor output, h_n, c_n, cells, gates;

  ForwardTensors(const Layer& layer, bool save_cells, bool save_gates, bool copies_state = true);
  ForwardResult result(const Layer& layer) const {
    return {output, h_n, c_n.to(layer.c_0.scalar_type()), cells, gates};
  }
};

// Shapes, dtypes and devices agree, or the error names the argument, what was expected and what
// came. These two serve CPU, CUDA and Meta alike, so they use symbolic sizes only. They see the
// device alone of prepacked matrices, if those are allowed: who reads them knows their sizes.
Layer check_layer(LstmCall call, bool allows_prepacked = false);

// Every tensor in float32.
Layer as_float(const Layer& layer);

// has_memory: false for Meta tensors.
void check_backward(const Layer& layer, const BackwardArguments& arguments, bool has_memory = true);

// Checks of tensors with values: those inside batch_sizes, those of lengths where reading them
// needs no device synchronization, and memory for every element.
void check_values(const Layer& layer);

// An error unless there is memory for every element: it may have been freed
// (tensor.untyped_storage().resize_(0)). The tensor may be undefined.
void check_memory(const Tensor& tensor, const char* name);

// The place of the rows of one step of a walk among the flat rows.
struct WalkStep {
  int64_t t;            // position in time
  int64_t offset;       // first flat row
  int64_t rows;         // rows alive (all B of them where lengths decides on the device)
  int64_t prev_offset;  // the same of the step before, in walking order
  int64_t prev_rows;    // 0 at the first step
};
std::vector<WalkStep> walk(const Layer& layer, bool reverse);

// float for the 16-bit types, else the dtype itself: the cell state and all arithmetic.
at::ScalarType state_dtype(at::ScalarType dtype);

// The dtype of the input; an error for one that is not supported.
Dtype dtype_of(at::ScalarType dtype);

}  // namespace fastlstm
