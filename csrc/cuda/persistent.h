// The persistent engine's interface: everything one launch reads and writes. R flat rows in time
// order: R = T * B, or the length of the packed data. T is float, bfloat16 or float16; the cell
// state is float. Pointers are to contiguous rows; only `output`, `exchange` and `d_output` have a
// row stride, since both directions share them. W is Tiling::exchange_width: H, or more where rows
// of H values are not whole pieces of 16 bytes. What is exchanged starts at a multiple of 16 bytes.
#pragma once
#include <cstdint>

#include "../equations/elementary.h"
#include "../equations/lstm_params.h"
#include "dtypes.h"
#include "plan.h"

namespace fastlstm {

// The rows of a call: which batch row is alive when, and where its flat row lies.
struct Sequence {
  int steps, batch, hidden_size;
  const int64_t* lengths;  // [B] steps of each batch row, or nullptr: all of them
  const int64_t* offsets;  // [T] packed data: first flat row of a step; nullptr: t * B
  const int64_t* order;    // [B] batch rows, longest first, so that short ones share a tile and
                           // leave it early; or nullptr: as they are (packed data is sorted)
  const bool* reset;       // [T,B] state is zeroed before that step; or nullptr
};

// Steps of a batch row. Lengths on the device were not checked by the host: they must not lead
// outside the sequence.
FASTLSTM_INLINE int live_steps(const Sequence& sequence, int64_t row) {
  if (!sequence.lengths) return sequence.steps;
  const int64_t length = sequence.lengths[row];
  return length < 0 ? 0 : length > sequence.steps ? sequence.steps : static_cast<int>(length);
}

template <typename T>
struct ForwardDirection {
  const T* w_hh;  // [4H,H]
  const T* h_0;   // [B,W]  0 after the units
  T* gates;       // [R,4H] x W_ih^T + b in; the activated gates out, if they are saved
  T* output;      // [R,H]  h_t, 0 at dead positions
  T* exchange;    // [R,W]  h_t, 0 after the units; on entry all bits are set. It is output where
                  //        it need not be another
  float* cells;   // [R,H]  c_t, or nullptr
  T* h_n;         // [B,H]  holds h_0 on entry: rows of length 0 keep it
  float* c_n;     // [B,H]  likewise c_0

  template <class Function>
  FASTLSTM_INLINE void for_each_pointer(const Function& f) {
    f(w_hh), f(h_0), f(gates), f(output), f(exchange), f(cells), f(h_n), f(c_n);
  }
};

template <typename T>
struct PersistentForward {
  Sequence sequence;
  ForwardDirection<T> direction[2];  // the second walks in reverse
  bool first_reverse;                // a launch of one direction: whether it is the reverse one
  bool save_gates;
  int64_t output_stride, exchange_stride;
};

template <typename T>
struct BackwardDirection {
  const T* w_hh;         // [4H,H]
  const float* c_0;      // [B,H]
  const T* gates;        // [R,4H] activated
  const float* cells;    // [R,H]
  const T* d_output;     // [R,H] or nullptr: 0
  const float* d_cells;  // [R,H] or nullptr: 0
  T* d_gates;            // [R,4,W] out, 0 at dead positions and after the units; on entry all bits
                         //        are set
  T* d_h;                // [B,H] dL/dh_n in, dL/dh_0 out if state_needs_grad
  float* d_c;            // [B,H] dL/dc_n in, dL/dc_0 out likewise

  template <class Function>
  FASTLSTM_INLINE void for_each_pointer(const Function& f) {
    f(w_hh), f(c_0), f(gates), f(cells), f(d_output), f(d_cells), f(d_gates), f(d_h), f(d_c);
  }
};

template <typename T>
struct PersistentBackward {
  Sequence sequence;
  BackwardDirection<T> direction[2];
  bool first_reverse;
  bool state_needs_grad;
  int64_t d_output_stride;
};

// Walks the whole sequence in one cooperative launch, divided as planned.
// cudaErrorCooperativeLaunchTooLarge (or another error of the launch) means that nothing ran, and
// so does cudaErrorInvalidValue: no such tile.
template <typename T>
cudaError_t launch_walk(const PersistentForward<T>& call, const Tiling& tiling,
                        cudaStream_t stream);
template <typename T>
cudaError_t launch_walk(const PersistentBackward<T>& call, const Tiling& tiling,
                        cudaStream_t stream);

// Copies host values to the device as parameters of kernels: no synchronization, capture-safe.
cudaError_t launch_upload(const int64_t* host, int64_t count, int64_t* device, cudaStream_t stream);

}  // namespace fastlstm
