// The kernels of the cell equations for the tiled engine: their arguments and their table. A row is
// one batch row at one step. It is given by pointers, so the kernels do not distinguish dense,
// packed, ragged, reset and batch-first input.
#pragma once
#include "cpu/dtypes.h"

namespace fastlstm {

template <typename T>
struct ForwardRow {
  using A = State_t<T>;
  const A* x_gates;  // in gate order: x_t W_ih^T + b; nullptr if StepSums::x has it
  T* gates;          // [4H] receives the activated i, f, g, o; nullptr if they are not saved
  const A* c_prev;   // [H]
  A* c;              // [H] receives c_t; may be the same memory as c_prev
  T* h;              // [H] receives o tanh(c_t)
};

template <typename T>
struct BackwardRow {
  using A = State_t<T>;
  const T* d_output;  // [H] dL/dh_t from outside, or zeros
  const T* d_h_n;     // [H] dL/dh_n if this is the row's last step, else zeros
  const A* d_cells;   // [H] dL/dc_t from outside, or zeros
  const T* gates;     // [4H]
  const A* c;         // [H]
  const A* c_prev;    // [H]
  A* dc;              // [H] dL/dc_t from later steps or c_n; receives dL/dc_{t-1} from this step
  T* d_gates;         // [4H] receives dL/d(pre-activations); may be the same memory as `gates`
  bool reset;         // the state was zeroed before this step
};

// The units [first, first + count) of hidden_size. The forward kernel takes at most one vector.
struct Units {
  int64_t first, count, hidden_size;
};

// The products of a step for one vector of units: rows [4 gates][gate_lanes], `stride` elements
// apart. A vector can be read at each gate.
template <typename A>
struct StepSums {
  const A* h;  // h_{t-1} W_hh^T
  int64_t stride;
  const A* x;  // x_t W_ih^T + b; nullptr if ForwardRow::x_gates holds this
  int64_t gate_lanes;
};

template <typename T>
struct CellKernels {
  using A = State_t<T>;
  // Prefetch most inputs of `forward` and `backward`, before the product of the same rows.
  void (*prefetch_forward)(const ForwardRow<T>* rows, int64_t count, const Units& units);
  void (*prefetch_backward)(const BackwardRow<T>* rows, int64_t count, const Units& units);
  void (*forward)(const ForwardRow<T>* rows, int64_t count, const StepSums<A>& sums,
                  const Units& units);
  // sums: d_gates_{t+1} W_hh, or with a projection dL/dh_t W_hr; rows lie `stride` elements apart.
  void (*backward)(const BackwardRow<T>* rows, int64_t count, const A* sums, int64_t stride,
                   const Units& units);
};

}  // namespace fastlstm
