// The arguments of one step of one direction for a kernel of the stepwise engine: sizes, pointers
// and strides. This file knows neither torch nor CUDA.
//
// H is hidden_size, rows are batch rows. Rows are contiguous, unless a member *_stride gives the
// distance between two rows in elements. T is the dtype of the tensors, A that of the cell state
// and of the arithmetic (float for the 16-bit types, else T itself). Only `lengths` and `reset` may
// be nullptr, so that the loop over units has no branch: an output that was not requested points to
// another output, and a missing gradient points to one row of zeros with stride 0.
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

template <typename T, typename A>
struct StepForward : Step {
  const T* x_gates;  // [rows,4H] x_t W_ih^T + b_ih + b_hh
  const T* h_gates;  // [rows,4H] h_{t-1} W_hh^T; ignored where reset
  T* gates;          // [rows,4H] activated i, f, g, o; may alias x_gates
  A* c_state;        // [rows,H]  c_{t-1} in, c_t out
  A* cells;          // [rows,H]  c_t (a dead row stores its carried state); may alias c_state
  T* h_state;        // [rows,H]  h_t out (dead rows untouched)
  T* output;         // [rows,H]  h_t (0 for dead rows); may alias h_state when lengths is null
  int64_t output_stride;
};

template <typename T, typename A>
struct StepBackward : Step {
  const T* gates;       // [rows,4H] activated i, f, g, o
  const A* cells;       // [rows,H]  c_t
  const A* prev_cells;  // [prev_rows,H] c_{t-1} in walking order
  const A* c_0;         // [rows,H]  for the rows that start here
  const T* d_output;    // [rows,H]  dL/dh_t from outside
  const A* d_cells;     // [rows,H]  dL/dc_t from outside
  T* dh_state;  // [rows,H]  dL/dh_t from the future; zeroed where it was used, so that the GEMM
                //           that follows may accumulate; dead rows keep theirs
  A* dc_state;  // [rows,H]  dL/dc_t in, dL/dc_{t-1} out (0 where reset)
  T* d_gates;   // [rows,4H] d pre-activations out (0 for dead rows); may alias gates
  int64_t d_output_stride, d_cells_stride;
};

}  // namespace fastlstm
