// The kernels of the cell equations for the tiled engine: their arguments, and a table of functions
// for one dtype and one target. A row is one batch row at one step, given by pointers, so the
// kernels do not distinguish dense, packed, ragged, reset and batch-first input.
#pragma once
#include <cstdint>

#include "cpu/dtypes.h"

namespace fastlstm {

template <typename T>
struct ForwardRow {
  using A = State_t<T>;
  const A* x_gates;  // [vectors of units][4 gates][lanes] x_t W_ih^T + b; may be nullptr if
                     // StepSums::x is used
  T* gates;          // [4H] receives the activated i, f, g, o; may be nullptr
  const A* c_prev;   // [H]
  A* c;              // [H] may be the same memory as c_prev
  T* h;              // [H]
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
  A* dc;              // [H] dL/dc_t before the call, dL/dc_{t-1} after it
  T* d_gates;         // [4H] receives the gradients; may be the same memory as `gates`
  bool reset;         // the state was zeroed before this step
};

// The units [first, first + count) of hidden_size. In forward count is at most one vector.
struct Units {
  int64_t first, count, hidden_size;
};

// The results of a step's products for one vector of units: [4][lanes] for each row. Rows lie
// `stride` elements apart.
template <typename A>
struct StepSums {
  const A* h;  // h_{t-1} W_hh^T
  int64_t stride;
  const A* x = nullptr;  // used in place of the rows' x_gates, unless it is nullptr
};

template <typename T>
struct CellKernels {
  using A = State_t<T>;
  // Prefetch what `forward` and `backward` will read, before the product of the same rows runs.
  void (*prefetch_forward)(const ForwardRow<T>* rows, int64_t count, const Units& units);
  void (*prefetch_backward)(const BackwardRow<T>* rows, int64_t count, const Units& units);
  void (*forward)(const ForwardRow<T>* rows, int64_t count, const StepSums<A>& sums,
                  const Units& units);
  // sums: [rows][units] d_gates_{t+1} W_hh, which is dL/dh_t from the step after. Rows lie `stride`
  // elements apart.
  void (*backward)(const BackwardRow<T>* rows, int64_t count, const A* sums, int64_t stride,
                   const Units& units);
};

}  // namespace fastlstm
