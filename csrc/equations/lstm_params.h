// The arguments of the kernels of the stepwise engine, for one step of one direction.
//
// H is hidden_size. Batch rows are contiguous, unless a member *_stride gives the distance between
// two rows in elements. T is the dtype of the tensors, A the dtype of the cell state and of the
// arithmetic (float for the 16-bit types, else T itself).
//
// Only `lengths`, `reset`, `reset_after` and `h_mask` may be nullptr. An output that is not
// requested has the pointer of another output. A missing gradient is a zero row with stride 0.
//
// A row is live at step t if it has not ended: t < lengths[row]. A dead row keeps its state, and
// its output is zero. All rows of packed data and of dense data are live.
#pragma once
#include <cstdint>

namespace fastlstm {

struct Step {
  static constexpr bool kWholeRows = false;  // whether a kernel needs sums over a whole row

  int64_t t, rows, hidden_size;
  int64_t prev_rows;       // WalkStep::prev_rows; the rows from this index on start from h_0, c_0
  bool reverse;            // whether the walk goes from the last step to the first
  const int64_t* lengths;  // [rows], or nullptr if all rows are live
  const bool* reset;       // [rows] whether the state is zeroed before this step; nullptr: no row
};

// Where a forward step stores h_t. Of these tensors a dead row changes only `output`.
template <typename T>
struct HiddenOutput : Step {
  T* h_state;       // [rows,H] receives h_t
  const T* h_mask;  // [rows,H] W_hh multiplies h_mask * h; nullptr: W_hh multiplies h
  T* h_masked;      // [rows,H] receives h_mask * h_t; not used without h_mask
  T* output;  // [rows,H] receives h_t, 0 for dead rows; may be h_state, whose dead rows become 0
  int64_t output_stride;
};

template <typename T, typename A>
struct ForwardStep : HiddenOutput<T> {
  const T* x_gates;  // [rows,4H] x_t W_ih^T + b_ih + b_hh
  const T* h_gates;  // [rows,4H] h_{t-1} W_hh^T; not read if the row is reset
  T* gates;          // [rows,4H] receives the activated i, f, g, o; may be x_gates
  A* c_state;        // [rows,H]  c_{t-1}; receives c_t
  A* cells;          // [rows,H]  receives c_t, or the kept state of a dead row; may be c_state
};

// The part of a forward step after the product with W_hr. hidden_size is proj_size here.
template <typename T, typename A>
struct ProjectionForwardStep : HiddenOutput<T> {
  const T* projected;  // [rows,H] h_t
};

// Where a backward step finds the parts of dL/dh_t. "After" means the order of the forward walk:
// backward has just computed the step after this one.
template <typename T>
struct HiddenGradientInput : Step {
  // [rows,H] d_gates W_hh of the step after, or dL/dh_n at the last step of a row. The kernel reads
  // it and sets it to 0, and the next GEMM adds to it. Dead rows are left as they are.
  T* dh_state;
  const T* h_mask;          // [rows,H] a factor of d_gates W_hh; nullptr: no factor
  int64_t rows_after;       // `rows` of the step after this one, 0 at the last step
  const bool* reset_after;  // [rows_after] `reset` of the step after; nullptr: no row
  const T* d_output;        // [rows,H] the gradient of `output`
  int64_t d_output_stride;
};

template <typename T, typename A>
struct BackwardStep : HiddenGradientInput<T> {
  const T* gates;       // [rows,4H] activated i, f, g, o
  const A* cells;       // [rows,H]  c_t
  const A* prev_cells;  // [prev_rows,H] c_{t-1}, the cells of the step before in the forward walk
  const A* c_0;         // [rows,H]  c_{t-1} of the rows that start here
  const A* d_cells;     // [rows,H]  the gradient of the op's result `cells`
  int64_t d_cells_stride;
  A* dc_state;  // [rows,H]  the part of dL/dc_t that comes from the step after, or dL/dc_n at the
                // last step of a row; receives dL/dc_{t-1}
  T* d_gates;   // [rows,4H] receives dL/d(pre-activations), 0 for dead rows. May be gates
};

template <typename T, typename A>
struct ProjectionBackwardStep : HiddenGradientInput<T> {
  T* d_projected;  // [rows,H] receives dL/dh_t, 0 for dead rows
};

}  // namespace fastlstm
