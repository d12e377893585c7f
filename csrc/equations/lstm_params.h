// The arguments of one step of one direction for a kernel of the stepwise engine: sizes, pointers
// and strides. This file knows neither torch nor CUDA.
//
// H is hidden_size, rows are batch rows. Rows are contiguous, unless a member *_stride gives the
// distance between two rows in elements. T is the dtype of the tensors, A that of the cell state
// and of the arithmetic (float for the 16-bit types, else T itself). Only `lengths`, resets and
// `h_mask` may be nullptr, so that the loop over units has no branch: an output that was not
// requested points to another output, and a missing gradient points to one row of zeros with
// stride 0.
//
// The rows that are live at step t:
//   dense    rows = B, lengths = nullptr
//   packed   rows = batch_sizes[t] (known on the host, rows sorted by length), lengths = nullptr
//   lengths  rows = B, lengths[row] on the device; a row with t >= lengths[row] is dead: it keeps
//   its
//            state, and its output is zero
#pragma once
#include <cstdint>

namespace fastlstm {

// The arguments that forward and backward share.
struct Step {
  static constexpr bool kWholeRows = false;  // whether a step needs sums over a whole row

  int64_t t;
  int64_t rows;
  int64_t hidden_size;
  int64_t prev_rows;       // rows that had a step before this one in walking order; the rest start
                           // here from h_0, c_0 (0 at the first step)
  bool reverse;            // walking from the last step to the first
  const int64_t* lengths;  // [rows] or nullptr
  const bool* reset;       // [rows] or nullptr: state is zeroed before this step
};

// Where a step stores h_t.
template <typename T>
struct HiddenOutput : Step {
  T* h_state;       // [rows,H]  h_t out (dead rows untouched)
  const T* h_mask;  // [rows,H] or nullptr: W_hh sees h_mask * h
  T* h_seen;        // [rows,H]  h_mask * h_t out (dead rows untouched); only with h_mask
  T* output;        // [rows,H]  h_t (0 for dead rows); may alias h_state when lengths is null
  int64_t output_stride;
};

template <typename T, typename A>
struct ForwardStep : HiddenOutput<T> {
  const T* x_gates;  // [rows,4H] x_t W_ih^T + b_ih + b_hh
  const T* h_gates;  // [rows,4H] h_{t-1} W_hh^T; ignored where reset
  T* gates;          // [rows,4H] activated i, f, g, o; may alias x_gates
  A* c_state;        // [rows,H]  c_{t-1} in, c_t out
  A* cells;          // [rows,H]  c_t (a dead row stores its carried state); may alias c_state
};

// What a layer with a projection does in a step after the product with W_hr. hidden_size is
// proj_size here.
template <typename T, typename A>
struct ProjectionForwardStep : HiddenOutput<T> {
  const T* projected;  // [rows,H] h_t
};

// Where a step finds dL/dh_t. The step "after" this one is the next in walking order.
template <typename T>
struct HiddenGradientInput : Step {
  T* dh_state;      // [rows,H] d_gates W_hh of the step after, or dL/dh_n if this is the row's last
                    //          step; zeroed here, so that the next GEMM may accumulate. Dead rows
                    //          keep theirs
  const T* h_mask;  // [rows,H] or nullptr: the factor of d_gates W_hh
  int64_t rows_after;       // rows that have a step after this one (0 at the last step)
  const bool* reset_after;  // [rows_after] or nullptr: d_gates W_hh is ignored
  const T* d_output;        // [rows,H] dL/dh_t from outside
  int64_t d_output_stride;
};

template <typename T, typename A>
struct BackwardStep : HiddenGradientInput<T> {
  const T* gates;       // [rows,4H] activated i, f, g, o
  const A* cells;       // [rows,H]  c_t
  const A* prev_cells;  // [prev_rows,H] c_{t-1} in walking order
  const A* c_0;         // [rows,H]  for the rows that start here
  const A* d_cells;     // [rows,H]  dL/dc_t from outside
  int64_t d_cells_stride;
  A* dc_state;  // [rows,H]  dL/dc_t in, dL/dc_{t-1} out (0 where reset)
  T* d_gates;   // [rows,4H] d pre-activations out (0 for dead rows); may alias gates
};

// What a layer with a projection does in a step backward before the product with W_hr.
template <typename T, typename A>
struct ProjectionBackwardStep : HiddenGradientInput<T> {
  T* d_projected;  // [rows,H] dL/dh_t out (0 for dead rows)
};

}  // namespace fastlstm
