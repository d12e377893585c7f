// LayerCall, which all engines take: a checked call with its sizes and with its weights by name.
//
// Sizes: T steps, B batch rows, I input_size, H hidden_size, P output size (proj_size or H),
// D directions (direction 1 walks in reverse), R flat rows: the rows of all steps in time order. A
// padded batch [T,B] has T * B of them, and packed data [R,I] lists them.
#pragma once

#include "core/call.h"
#include "dtype_list.h"

namespace fastlstm {

// The sizes as integers, for engines. Checks and Meta kernels use symbolic sizes.
struct Sizes {
  int64_t directions, steps, batch, flat_rows, input_size, hidden_size, output_size;
};

// The members of LstmCall have these shapes:
//   input        [T,B,I], or packed data [R,I], with any strides
//   h_0, h_mask  [D,B,P]  W_hh multiplies h_mask * h_{t-1}
//   c_0          [D,B,H]  in the dtype of the input or in state_dtype
//   batch_sizes  [T]      int64, only with packed data, which has neither lengths nor reset
//   lengths      [B]      int64
//   reset        [T,B]    bool
struct LayerCall : LstmCall {
  std::vector<Direction> directions;  // the weights, moved out of `weights`, which is empty
  WeightLayout weight_layout;         // `layout`, parsed
  c10::SymInt steps, batch, flat_rows, input_size, hidden_size, output_size;

  bool packed() const { return batch_sizes.has_value(); }
  bool projects() const { return weight_layout.projects; }
  bool normalizes() const { return weight_layout.normalizes; }
  std::string options_in_use() const;  // for a message; empty for a plain LSTM
  bool is_prepacked() const { return !weight_layout.format.empty(); }
  bool has_bias() const { return weight_layout.bias; }
  int64_t num_directions() const { return static_cast<int64_t>(directions.size()); }
  Sizes sizes() const;
  // [T,B,size] or [R,size]; if `per_direction`, [D,T,B,size] or [D,R,size].
  std::vector<c10::SymInt> sequence_shape(const c10::SymInt& size, bool per_direction) const;
  at::TensorOptions state_options() const;  // the options of `input`, in state_dtype
};

// The results of forward, allocated. Cells and gates that are not saved are undefined tensors.
struct ForwardTensors {
  Tensor output;  // [T,B,D*P] or [R,D*P]; 0 after the end of each row
  Tensor h_n;     // [D,B,P]  a copy of h_0, which each step updates
  Tensor c_n;     // [D,B,H]  a copy of c_0 in state_dtype, which each step updates
  Tensor cells;   // [D,T,B,H] or [D,R,H], in state_dtype
  Tensor gates;   // [D,T,B,4H] or [D,R,4H], the activated i, f, g, o

  ForwardTensors(const LayerCall& layer, const ForwardOptions& options);
  ForwardResult result(const LayerCall& layer) const {
    return {output, h_n, c_n.to(layer.c_0.scalar_type()), cells, gates};
  }
};

// Checks shapes, dtypes and devices. Reading the header of a prepacked matrix checks its size.
LayerCall check_layer(LstmCall call, bool allows_prepacked = false);

// Checks the arguments that only backward has.
void check_backward(const LayerCall& layer, const BackwardArguments& arguments);

// Checks that every tensor has memory, and the values of batch_sizes and lengths. Lengths on a GPU
// are not checked, because the host would have to wait for them.
void check_values(const LayerCall& layer);

// Raises an error if the memory of a tensor was freed (tensor.untyped_storage().resize_(0)). A meta
// tensor has no memory and passes.
void check_memory(const Tensor& tensor, const char* name);

// The flat rows of one step of a walk. A walk visits the steps in time order, or in reverse.
struct WalkStep {
  int64_t t;                // time step
  int64_t offset;           // its first flat row
  int64_t rows;             // batch_sizes[t] for packed data; else B, the ended rows included
  int64_t prev_offset = 0;  // `offset` of the step that the walk visits before this one
  int64_t prev_rows = 0;    // `rows` of that step; 0 if this is the first step of the walk
};
std::vector<WalkStep> walk(const LayerCall& layer, bool reverse);

// The dtype of the cell state and of all arithmetic: float32 for a 16-bit dtype, else the dtype.
at::ScalarType state_dtype(at::ScalarType dtype);

Dtype dtype_of(at::ScalarType dtype);

}  // namespace fastlstm
