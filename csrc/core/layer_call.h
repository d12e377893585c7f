// One call of the op after its checks, with its sizes and its weights by name. Every engine takes
// this.
//
// Sizes: T steps, B batch rows, I input_size, H hidden_size, P output size (proj_size or H),
// D directions (direction 1 walks in reverse). R is the number of flat rows: the rows of all steps
// in time order. A padded batch [T,B] has R = T * B flat rows, packed data has one for each of its
// rows.
#pragma once
#include <string>
#include <vector>

#include "core/call.h"
#include "dtype_list.h"

namespace fastlstm {

// The sizes above as plain integers, for engines.
struct Sizes {
  int64_t directions, steps, batch, flat_rows, input_size, hidden_size, output_size;
};

// input [T,B,I] or [R,I]; h_0 [D,B,P]; c_0 [D,B,H], in the dtype of the input or in state_dtype;
// h_mask [D,B,P]: the factor of h_{t-1} before it is multiplied by W_hh.
struct LayerCall : LstmCall {
  std::vector<Direction> directions;  // the weights, moved out of `weights`, which is empty
  WeightLayout weight_layout;         // `layout`, parsed
  c10::SymInt steps, batch, flat_rows, input_size, hidden_size, output_size;

  bool packed() const { return batch_sizes.has_value(); }
  bool projects() const { return weight_layout.projects; }
  bool normalizes() const { return weight_layout.normalizes; }
  std::string options() const;  // the names of the options that a plain LSTM lacks, for messages
  bool is_prepacked() const { return !weight_layout.format.empty(); }
  bool has_bias() const { return weight_layout.bias; }
  int64_t num_directions() const { return static_cast<int64_t>(directions.size()); }
  Sizes sizes() const;
  // The shape [T,B,size] or [R,size], with the dimension of the directions in front if
  // `per_direction`.
  std::vector<c10::SymInt> sequence(const c10::SymInt& size, bool per_direction) const;
  at::TensorOptions state_options() const;
};

// Allocates the results of forward. If `copies_state`, h_n and c_n begin as copies of h_0 and c_0
// in the dtype of the state, and the walk updates them. Cells and gates that are not saved are
// undefined tensors.
struct ForwardTensors {
  Tensor output, h_n, c_n, cells, gates;

  ForwardTensors(const LayerCall& layer, bool save_cells, bool save_gates,
                 bool copies_state = true);
  ForwardResult result(const LayerCall& layer) const {
    return {output, h_n, c_n.to(layer.c_0.scalar_type()), cells, gates};
  }
};

// Checks that shapes, dtypes and devices agree. An error names the argument, what was expected and
// what came. check_layer and check_backward serve CPU, CUDA and Meta, so they compare symbolic
// sizes only. For prepacked matrices only the device is checked here. Their sizes are checked when
// their header is read.
LayerCall check_layer(LstmCall call, bool allows_prepacked = false);

// The call with every floating point tensor in float32.
LayerCall as_float(const LayerCall& layer);

// Checks the arguments of backward that forward does not have. has_memory: false for Meta tensors.
void check_backward(const LayerCall& layer, const BackwardArguments& arguments,
                    bool has_memory = true);

// Checks the values of batch_sizes, the values of lengths if they are on the CPU (reading them
// elsewhere would synchronize the device), and that every tensor has memory for its elements.
void check_values(const LayerCall& layer);

// Raises an error unless the tensor has memory for every element. A user may have freed it by
// tensor.untyped_storage().resize_(0). An undefined tensor passes.
void check_memory(const Tensor& tensor, const char* name);

// Which flat rows a step of a walk has.
struct WalkStep {
  int64_t t;            // position in time
  int64_t offset;       // first flat row
  int64_t rows;         // batch_sizes[t] of packed data, else B; with `lengths` some may be dead
  int64_t prev_offset;  // first flat row of the step before, in walking order
  int64_t prev_rows;    // `rows` of the step before; 0 at the first step
};
// Returns all steps of a walk, in walking order.
std::vector<WalkStep> walk(const LayerCall& layer, bool reverse);

// The dtype of the cell state and of all arithmetic: float32 for the 16-bit types, else the dtype
// itself.
at::ScalarType state_dtype(at::ScalarType dtype);

// The Dtype of a torch dtype. Raises an error if it is not supported.
Dtype dtype_of(at::ScalarType dtype);

}  // namespace fastlstm
