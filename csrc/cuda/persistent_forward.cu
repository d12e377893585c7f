// Persistent engine, forward: one launch walks the whole sequence. W_hh never leaves shared memory;
// h passes from block to block through `output`, once per step.
//
// Per step a warp waits for the blocks that computed its eighth of h_{t-1}, loads that straight
// into mma operands and leaves partial sums in shared memory; then each thread takes a unit of a
// row, adds the sums and the input's part, and stores h_t. What limits it is latency: the flags,
// one trip to L2, two barriers. Inputs that do not depend on neighbours are loaded before the wait.
#include "../lstm_step.h"
#include "persistent_tile.h"

namespace fastlstm {
namespace {

// A unit of a row, between the loads before the wait and the stores after it.
struct Item {
  Gates<float> gates;  // the input's part, then activated
  bool reset;
};

template <class P, int kUnits, int kTile>
__global__ void __launch_bounds__(kThreads, 1)
    forward_kernel(PersistentForward<typename P::T> call, Tiling tiling, bool aligned) {
  using T = typename P::T;
  constexpr int kItems = (kUnits * kTile + kThreads - 1) / kThreads;  // units x rows of a thread
  const int hidden = call.sequence.hidden_size, steps = call.sequence.steps;
  const Block<P, 4 * kUnits, kUnits, kTile> block(call.sequence, tiling, call.first_reverse,
                                                  call.flags, hidden);
  const ForwardDirection<T>& d = call.direction[block.direction];

  load_slice<P, 4 * kUnits>(block.slice, block.chunks, [&](int row, int k) {
    const int gate = row / kUnits, unit = row % kUnits;
    return unit < block.units && k < hidden
               ? d.w_hh[int64_t(gate * hidden + block.first_unit + unit) * hidden + k]
               : T(0.0f);
  });
  __syncthreads();
  for (int i = threadIdx.x; i < tiling.group_rows * kUnits; i += kThreads)
    if (block.length[i / kUnits] >= 0 && i % kUnits < block.units)
      block.state[i] =
          d.c_0[int64_t(block.batch_row[i / kUnits]) * hidden + block.first_unit + i % kUnits];
  __syncthreads();

  int64_t offset_prev = 0;
  for (int n = 0; n < steps; ++n) {
    const int t = block.reverse ? steps - 1 - n : n;
    const int64_t offset = block.offset(t);
    bool waited = n == 0;
    for (int pass = 0; pass < block.passes; ++pass) {
      // All that does not come from the neighbours, before waiting for them.
      Item items[kItems];
#pragma unroll
      for (int j = 0; j < kItems; ++j) {
        const int index = threadIdx.x + j * kThreads, unit = index % kUnits;
        const int i = pass * kTile + index / kUnits;
        if (index >= kUnits * kTile || unit >= block.units || !block.is_live(t, i)) continue;
        const T* gates = d.gates + (offset + block.batch_row[i]) * 4 * hidden + block.first_unit;
        items[j].gates = load_gates<T, float>(gates, unit, hidden);
        items[j].reset = block.is_reset(t, i);
      }

      if (block.pass_is_live(t, pass)) {
        const T* source[kTile / 8];
#pragma unroll
        for (int j = 0; j < kTile / 8; ++j) {
          const int i = pass * kTile + 8 * j + block.lane / 4;
          source[j] = nullptr;
          if (!block.is_live(t, i) || block.is_reset(t, i)) continue;
          source[j] = block.is_first_step(t, i)
                          ? d.h_0 + int64_t(block.batch_row[i]) * hidden
                          : d.output + (offset_prev + block.batch_row[i]) * call.output_stride;
        }
        if (!waited) block.wait(n);
        waited = true;
        block.multiply(source, aligned);
      }
      __syncthreads();

#pragma unroll
      for (int j = 0; j < kItems; ++j) {
        const int index = threadIdx.x + j * kThreads, unit = index % kUnits;
        const int row = index / kUnits, i = pass * kTile + row;
        if (index >= kUnits * kTile || unit >= block.units) continue;
        Item& item = items[j];
        T h = T(0.0f);
        if (block.is_live(t, i)) {
          const Gates<float> pre = {item.gates.i + block.product(row, unit),
                                    item.gates.f + block.product(row, kUnits + unit),
                                    item.gates.g + block.product(row, 2 * kUnits + unit),
                                    item.gates.o + block.product(row, 3 * kUnits + unit)};
          item.gates = activate(pre);
          float& c = block.state[i * kUnits + unit];
          c = next_cell(item.gates, item.reset ? 0.0f : c);
          h = T(fastlstm::hidden(item.gates.o, c));
          if (block.is_last_step(t, i)) {
            const int64_t at = int64_t(block.batch_row[i]) * hidden + block.first_unit + unit;
            d.h_n[at] = h;
            d.c_n[at] = c;
          }
        } else if (block.is_padding(t, i)) {
          item.gates = {0.0f, 0.0f, 0.0f, 0.0f};
        } else {
          continue;
        }
        store_exchanged(
            d.output + (offset + block.batch_row[i]) * call.output_stride + block.first_unit + unit,
            h);
      }
      __syncthreads();
      if (pass == block.passes - 1) block.publish(n + 1);

      // What no neighbour waits for, after the flag.
#pragma unroll
      for (int j = 0; j < kItems; ++j) {
        const int index = threadIdx.x + j * kThreads, unit = index % kUnits;
        const int i = pass * kTile + index / kUnits;
        if (index >= kUnits * kTile || unit >= block.units) continue;
        if (!block.is_live(t, i) && !block.is_padding(t, i)) continue;
        const int64_t flat = offset + block.batch_row[i];
        const int column = block.first_unit + unit;
        if (d.cells) d.cells[flat * hidden + column] = block.state[i * kUnits + unit];
        if (call.save_gates)
          store_gates(d.gates + flat * 4 * hidden, column, hidden, items[j].gates);
      }
    }
    offset_prev = offset;
  }
}

struct Kernel {
  template <class P, int kUnits, int kTile>
  static constexpr auto instance() {
    return forward_kernel<P, kUnits, kTile>;
  }
};

}  // namespace

template <typename T>
cudaError_t launch_persistent_forward(const PersistentForward<T>& call, const Task& task,
                                      const Tiling& tiling, cudaStream_t stream) {
  const int64_t size = sizeof(T);
  bool aligned = true;
  for (int d = 0; d < tiling.directions; ++d)
    aligned = aligned && is_aligned(call.direction[d].output, call.output_stride * size) &&
              is_aligned(call.direction[d].h_0, call.sequence.hidden_size * size);
  return Launcher<Kernel, PersistentForward<T>>{call, task, tiling, aligned, stream}
      .template run_dtype<T>();
}

template cudaError_t launch_persistent_forward(const PersistentForward<float>&, const Task&,
                                               const Tiling&, cudaStream_t);
template cudaError_t launch_persistent_forward(const PersistentForward<bfloat16>&, const Task&,
                                               const Tiling&, cudaStream_t);
template cudaError_t launch_persistent_forward(const PersistentForward<float16>&, const Task&,
                                               const Tiling&, cudaStream_t);

}  // namespace fastlstm
