// Persistent engine, backward: the steps of the forward walk in opposite order, in one launch.
//
// A block owns columns of W_hh (all 4H rows of its units), so dL/dh_{t-1} of its units is whole in
// the block: it reads everybody's d_gates of the step that came after and no sums leave it. d_gates
// is a buffer of its own, the saved gates stay as they are (retain_graph). One more product after
// the last step gives dL/dh_0.
#include "../equations/lstm_step.h"
#include "persistent_tile.h"

namespace fastlstm {
namespace {

// What a unit of a row needs besides dL/dh from the future.
struct Item {
  Gates<float> gates;
  float c, c_prev, dh, dc;
  bool reset;
};

template <class P, int kUnits, int kTile>
__global__ void __launch_bounds__(kThreads, 1)
    backward_kernel(PersistentBackward<typename P::T> call, Tiling tiling, bool aligned) {
  using T = typename P::T;
  constexpr int kItems = (kUnits * kTile + kThreads - 1) / kThreads;  // units x rows of a thread
  const int hidden = call.sequence.hidden_size, steps = call.sequence.steps;
  const Block<P, kUnits, kUnits, kTile> block(call.sequence, tiling, call.first_reverse,
                                              4 * hidden);
  const BackwardDirection<T>& d = call.direction[block.direction];

  load_slice<P, kUnits>(block.slice, block.chunks, [&](int unit, int k) {
    return unit < block.units && k < 4 * hidden
               ? d.w_hh[int64_t(k) * hidden + block.first_unit + unit]
               : T(0.0f);
  });
  __syncthreads();
  for (int i = threadIdx.x; i < tiling.group_rows * kUnits; i += kThreads)
    if (block.length[i / kUnits] >= 0 && i % kUnits < block.units)
      block.state[i] =
          d.d_c[int64_t(block.batch_row[i / kUnits]) * hidden + block.first_unit + i % kUnits];
  __syncthreads();

  int64_t offset_next = 0;
  for (int n = steps - 1; n >= 0; --n) {
    const int t = block.reverse ? steps - 1 - n : n;
    const int t_prev = block.reverse ? t + 1 : t - 1, t_next = block.reverse ? t - 1 : t + 1;
    const int t_soon = block.reverse ? t + kPrefetch : t - kPrefetch;
    const int64_t offset = block.offset(t), offset_prev = block.offset(t_prev);
    const int64_t offset_soon = block.offset(t_soon);
    for (int pass = 0; pass < block.passes; ++pass) {
      // All that does not come from the neighbours, before waiting for them.
      Item items[kItems];
#pragma unroll
      for (int j = 0; j < kItems; ++j) {
        const int index = threadIdx.x + j * kThreads, unit = index % kUnits;
        const int i = pass * kTile + index / kUnits;
        if (index >= kUnits * kTile || unit >= block.units || i >= tiling.group_rows) continue;
        const int column = block.first_unit + unit;
        const int64_t row = block.batch_row[i], flat = offset + row, soon = offset_soon + row;
        if (t_soon >= 0 && block.is_live(t_soon, i)) {
          for (int gate = 0; gate < 4; ++gate)
            prefetch(d.gates + (soon * 4 + gate) * hidden + column);
          prefetch(d.cells + soon * hidden + column);
          if (d.d_output) prefetch(d.d_output + soon * call.d_output_stride + column);
          prefetch(d.zoneout, soon, column);
        }
        if (!block.is_live(t, i)) continue;
        Item& item = items[j];
        item.gates = load_gates<T, float>(d.gates + flat * 4 * hidden, column, hidden);
        item.c = d.cells[flat * hidden + column];
        item.reset = block.is_reset(t, i);
        item.c_prev = item.reset                  ? 0.0f
                      : block.is_first_step(t, i) ? d.c_0[row * hidden + column]
                                                  : d.cells[(offset_prev + row) * hidden + column];
        item.dh = d.d_output ? float(d.d_output[flat * call.d_output_stride + column]) : 0.0f;
        // With zoneout: what it let through from the step after, whose place is d_h.
        if (d.zoneout.h || block.is_last_step(t, i)) item.dh += float(d.d_h[row * hidden + column]);
        item.dc = d.d_cells ? d.d_cells[flat * hidden + column] : 0.0f;
      }

      if (block.pass_is_live(t, pass)) {
        Source<T> source[kTile / 8];
#pragma unroll
        for (int j = 0; j < kTile / 8; ++j) {
          const int i = pass * kTile + 8 * j + block.lane / 4;
          if (block.is_live(t, i) && !block.is_last_step(t, i) && !block.is_reset(t_next, i))
            source[j] = {d.d_gates + (offset_next + block.batch_row[i]) * 4 * hidden, true};
        }
        block.multiply(source, aligned, n);
      }
      __syncthreads();

#pragma unroll
      for (int j = 0; j < kItems; ++j) {
        const int index = threadIdx.x + j * kThreads, unit = index % kUnits;
        if (index >= kUnits * kTile) continue;  // whole warps
        const int row = index / kUnits, i = pass * kTile + row;
        const bool live = unit < block.units && block.is_live(t, i);
        const bool exists = live || (unit < block.units && block.is_padding(t, i));
        Gates<float> d_gates = {0.0f, 0.0f, 0.0f, 0.0f};
        if (live) {
          const Item& item = items[j];
          const int64_t at = int64_t(block.batch_row[i]) * hidden + block.first_unit + unit;
          float& dc = block.state[i * kUnits + unit];
          float dh = block.template product<1>(row, unit).value[0], c = item.c, kept_dc = 0.0f;
          if (d.h_mask) dh *= float(d.h_mask[at]);
          dh += item.dh, dc += item.dc;
          if (d.zoneout.h) {
            const int64_t flat = offset + block.batch_row[i];
            const int column = block.first_unit + unit;
            c = next_cell(item.gates, item.c_prev);
            const float kept_dh =
                zoneout_backward(float(d.zoneout.h[flat * d.zoneout.h_stride + column]), dh);
            kept_dc = zoneout_backward(float(d.zoneout.c[flat * d.zoneout.c_stride + column]), dc);
            d.d_h[at] = T(item.reset ? 0.0f : kept_dh);
          }
          d_gates = cell_backward(item.gates, item.c_prev, c, dh, dc);
          dc = item.reset ? 0.0f : dc + kept_dc;
        }
        T* out = d.d_gates + (offset + (exists ? block.batch_row[i] : 0)) * 4 * hidden +
                 block.first_unit + unit;
        announce(out, T(d_gates.i), exists, aligned);
        announce(out + hidden, T(d_gates.f), exists, aligned);
        announce(out + 2 * hidden, T(d_gates.g), exists, aligned);
        announce(out + 3 * hidden, T(d_gates.o), exists, aligned);
      }
      __syncthreads();  // before the next pass overwrites the sums
    }
    offset_next = offset;
  }

  if (!call.state_needs_grad) return;
  // dL/dh_0, dL/dc_0. A row of length 0 keeps dL/dh_n, dL/dc_n.
  for (int pass = 0; pass < block.passes; ++pass) {
    Source<T> source[kTile / 8];
#pragma unroll
    for (int j = 0; j < kTile / 8; ++j) {
      const int i = pass * kTile + 8 * j + block.lane / 4;
      if (!block.is_live(0, i)) continue;
      const int t = block.reverse ? block.length[i] - 1 : 0;
      if (!block.is_reset(t, i))
        source[j] = {d.d_gates + (block.offset(t) + block.batch_row[i]) * 4 * hidden, true};
    }
    block.multiply(source, aligned, -1);
    __syncthreads();
    for (int index = threadIdx.x; index < kUnits * kTile; index += kThreads) {
      const int unit = index % kUnits, row = index / kUnits, i = pass * kTile + row;
      if (unit >= block.units || !block.is_live(0, i)) continue;
      const int64_t at = int64_t(block.batch_row[i]) * hidden + block.first_unit + unit;
      float dh = block.template product<1>(row, unit).value[0];
      if (d.h_mask) dh *= float(d.h_mask[at]);
      d.d_h[at] = T(d.zoneout.h ? dh + float(d.d_h[at]) : dh);
      d.d_c[at] = block.state[i * kUnits + unit];
    }
    __syncthreads();
  }
}

struct Kernel {
  template <class P, int kUnits, int kTile>
  static constexpr auto instance() {
    return backward_kernel<P, kUnits, kTile>;
  }
};

}  // namespace

template <typename T>
cudaError_t launch_persistent_backward(const PersistentBackward<T>& call, const Task& task,
                                       const Tiling& tiling, cudaStream_t stream) {
  const int64_t row_bytes = 4 * sizeof(T) * call.sequence.hidden_size;
  bool aligned = true;
  for (int d = 0; d < tiling.directions; ++d)
    aligned = aligned && is_aligned(call.direction[d].d_gates, row_bytes);
  return Launcher<Kernel, PersistentBackward<T>>{call, task, tiling, aligned, stream}
      .template run_dtype<T>();
}

#if defined(FASTLSTM_TRACE)
cudaError_t take_backward_trace(long long* host) { return take_entries(host); }
#endif

template cudaError_t launch_persistent_backward(const PersistentBackward<float>&, const Task&,
                                                const Tiling&, cudaStream_t);
template cudaError_t launch_persistent_backward(const PersistentBackward<bfloat16>&, const Task&,
                                                const Tiling&, cudaStream_t);
template cudaError_t launch_persistent_backward(const PersistentBackward<float16>&, const Task&,
                                                const Tiling&, cudaStream_t);

}  // namespace fastlstm
