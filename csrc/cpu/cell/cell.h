// The cell equations for rows whose products are known: what the walks pass to them, and a table of
// functions for one dtype and one target. Rows are pointers, so that dense, packed, ragged, reset
// and batch-first input are all the same. A row is one batch row at one step.
#pragma once
#include <cstdint>

#include "cpu/dtypes.h"

namespace fastlstm {

template <typename T>
struct ForwardRow {
  using A = State_t<T>;
  const A* x_gates;  // x_t W_ih^T + b, in the order of gates_of
  T* gates;          // [4H] activated i, f, g, o out, or nullptr
  const A* c_prev;   // [H]
  A* c;              // [H] may be c_prev
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
  A* dc;              // [H] dL/dc_t in, dL/dc_{t-1} out
  T* d_gates;         // [4H] out; may be `gates`
  bool reset;         // the state was zeroed before this step
};

// The units [first, first + count) of hidden_size, count <= lanes forward.
struct Units {
  int64_t first, count, hidden_size;
};

// The sums of a step's products for some units of its rows, [4][lanes] each, rows `stride` apart.
template <typename A>
struct StepSums {
  const A* h;  // h_{t-1} W_hh^T
  int64_t stride;
  const A* x = nullptr;  // what the rows' x_gates are, or nullptr: they are read
};

template <typename T>
struct Cell {
  using A = State_t<T>;
  // Brings what `forward` and `backward` will read into the L1 cache, while the product runs.
  void (*prefetch_forward)(const ForwardRow<T>* rows, int64_t count, const Units& units);
  void (*prefetch_backward)(const BackwardRow<T>* rows, int64_t count, const Units& units);
  void (*forward)(const ForwardRow<T>* rows, int64_t count, const StepSums<A>& sums,
                  const Units& units);
  // sums[r]: [units] d_gates_{t+1} W_hh, dL/dh_t from the step after; rows lie `stride` apart.
  void (*backward)(const BackwardRow<T>* rows, int64_t count, const A* sums, int64_t stride,
                   const Units& units);
};

}  // namespace fastlstm
