// The arguments of a launch of the persistent engine: all memory that its kernels read and write.
//
// Sizes: T steps, B batch rows, H hidden_size. R is the number of flat rows (layer_call.h): T * B,
// or the length of packed data. W is Tiling::exchange_width: H, or more if a row of H values is not
// a multiple of 16 bytes. The type T is float, bfloat16 or float16, and the cell state is float.
//
// Rows are contiguous, but `output`, `exchange` and `d_output`, which both directions share, have a
// row stride. Exchanged memory starts at a multiple of 16 bytes. Before the launch all its bits are
// set, which marks its values as not written.
#pragma once
#include <cstdint>

#include "../equations/elementary.h"
#include "dtypes.h"
#include "plan.h"

namespace fastlstm {

// The rows of a call: how many steps each batch row has, and where the flat rows of a step are.
struct Sequence {
  int steps, batch, hidden_size;
  const int64_t* lengths;  // [B] steps of each batch row; nullptr: every row has all steps
  const int64_t* offsets;  // [T] first flat row of each step of packed data; nullptr: t * B
  const int64_t* order;    // [B] the batch rows, the longest first; nullptr: 0 to B - 1
  const bool* reset;       // [T,B] whether the state is zeroed before a step; nullptr: never
  uint32_t wait_limit;     // how many milliseconds a block waits for a value of another block
};

template <typename T>
struct ForwardDirection {
  const T* w_hh;  // [4H,H]
  const T* h_0;   // [B,W]  columns H to W are 0
  T* gates;       // [R,4H] holds x W_ih^T + b; receives the activated gates if they are saved
  T* output;      // [R,H]  receives h_t, and 0 after the end of a row
  T* exchange;    // [R,W]  exchanged; receives h_t, and 0 in columns H to W. Is `output` if W = H
  float* cells;   // [R,H]  receives c_t; may be nullptr
  T* h_n;         // [B,H]  holds h_0, which rows of length 0 keep; receives h_n
  float* c_n;     // [B,H]  holds c_0, which rows of length 0 keep; receives c_n

  template <class Function>
  FASTLSTM_INLINE void for_each_pointer(const Function& f) {
    f(w_hh), f(h_0), f(gates), f(output), f(exchange), f(cells), f(h_n), f(c_n);
  }
};

template <typename T>
struct ForwardLaunch {
  Sequence sequence;
  ForwardDirection<T> direction[2];  // direction[1] walks in reverse
  bool first_reverse;  // whether direction[0] walks in reverse; then it is the only one
  bool save_gates;
  int64_t output_stride, exchange_stride;
};

template <typename T>
struct BackwardDirection {
  const T* w_hh;         // [4H,H]
  const float* c_0;      // [B,H]
  const T* gates;        // [R,4H] activated
  const float* cells;    // [R,H]
  const T* d_output;     // [R,H]  the gradient of `output`; nullptr: 0
  const float* d_cells;  // [R,H]  the gradient of `cells`; nullptr: 0
  T* d_gates;            // [R,4,W] exchanged; receives the gradients of the pre-activations, and 0
                         //        after the end of a row and in columns H to W
  T* d_h;                // [B,H]  holds dL/dh_n; receives dL/dh_0 if state_needs_grad
  float* d_c;            // [B,H]  holds dL/dc_n; receives dL/dc_0 if state_needs_grad

  template <class Function>
  FASTLSTM_INLINE void for_each_pointer(const Function& f) {
    f(w_hh), f(c_0), f(gates), f(cells), f(d_output), f(d_cells), f(d_gates), f(d_h), f(d_c);
  }
};

template <typename T>
struct BackwardLaunch {
  Sequence sequence;
  BackwardDirection<T> direction[2];
  bool first_reverse;
  bool state_needs_grad;
  int64_t d_output_stride;
};

// Computes all steps in one cooperative launch, divided as `tiling` says. After an error nothing
// has run. The error is cudaErrorInvalidValue if the kernels are not compiled for the tile shape.
template <typename T>
cudaError_t launch_walk(const ForwardLaunch<T>& args, const Tiling& tiling, cudaStream_t stream);
template <typename T>
cudaError_t launch_walk(const BackwardLaunch<T>& args, const Tiling& tiling, cudaStream_t stream);

// Copies `count` values from the host to the device. `host` may be freed after the call.
cudaError_t launch_upload(const int64_t* host, int64_t count, int64_t* device, cudaStream_t stream);

}  // namespace fastlstm
