// Persistent engine, forward: one launch walks the whole sequence. W_hh never leaves shared memory;
// h passes from block to block through `output`, once per step.
//
// Per step a warp loads its eighth of h_{t-1}, again and again until it is there, straight into mma
// operands, and leaves partial sums in shared memory; then each thread takes a unit of a row, adds
// the sums and the input's part, and stores h_t. What limits it is the trip of h_t through L2. Rows
// of another pass are other recurrences: while one travels, the block works on the next.
#include "../equations/lstm_step.h"
#include "persistent_tile.h"

namespace fastlstm {
namespace {

// A unit of a row: what does not come from the neighbours.
struct Item {
  Gates<float> gates;  // the input's part
  bool reset;
};

template <class P, int kUnits, int kTile>
__global__ void __launch_bounds__(kThreads, 1)
    forward_kernel(PersistentForward<typename P::T> call, Tiling tiling, bool aligned) {
  using T = typename P::T;
  constexpr int kItems = (kUnits * kTile + kThreads - 1) / kThreads;  // units x rows of a thread
  const int hidden = call.sequence.hidden_size, steps = call.sequence.steps;
  const Block<P, 4 * kUnits, kUnits, kTile> block(call.sequence, tiling, call.first_reverse,
                                                  hidden);
  const ForwardDirection<T>& d = call.direction[block.direction];

  load_slice<P, 4 * kUnits>(block.slice, block.chunks, [&](int row, int k) {
    const int gate = row % 4, unit = row / 4;
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
    const int t_soon = block.reverse ? t - kPrefetch : t + kPrefetch;
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
        const int64_t row = block.batch_row[i];
        if (t_soon >= 0 && block.is_live(t_soon, i))
          for (int gate = 0; gate < 4; ++gate)
            prefetch(d.gates + ((offset_soon + row) * 4 + gate) * hidden + column);
        if (t_soon >= 0 && block.is_live(t_soon, i)) prefetch(d.zoneout, offset_soon + row, column);
        if (!block.is_live(t, i)) continue;
        items[j].gates =
            load_gates<T, float>(d.gates + (offset + row) * 4 * hidden, column, hidden);
        items[j].reset = block.is_reset(t, i);
      }

      if (block.pass_is_live(t, pass)) {
        Source<T> source[kTile / 8];
#pragma unroll
        for (int j = 0; j < kTile / 8; ++j) {
          const int i = pass * kTile + 8 * j + block.lane / 4;
          if (!block.is_live(t, i) || block.is_reset(t, i)) continue;
          if (block.is_first_step(t, i))
            source[j] = {d.h_0 + int64_t(block.batch_row[i]) * hidden, false};
          else
            source[j] = {d.exchange + (offset_prev + block.batch_row[i]) * call.output_stride,
                         true};
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
        const int64_t batch_row = exists ? block.batch_row[i] : 0, flat = offset + batch_row;
        const int column = block.first_unit + unit;
        float& c = block.state[exists ? i * kUnits + unit : 0];
        T& h_n = d.h_n[batch_row * hidden + column];  // h_{t-1}, with zoneout
        Gates<float> gates = {0.0f, 0.0f, 0.0f, 0.0f};
        T h = T(0.0f);
        if (live) {
          const auto from_h = block.template product<4>(row, 4 * unit);
          const Gates<float>& from_x = items[j].gates;
          gates = activate(Gates<float>{from_x.i + from_h.value[0], from_x.f + from_h.value[1],
                                        from_x.g + from_h.value[2], from_x.o + from_h.value[3]});
          const float c_prev = items[j].reset ? 0.0f : c;
          c = next_cell(gates, c_prev);
          float h_t = fastlstm::hidden(gates.o, c);
          if (d.zoneout.h) {
            const float h_prev = items[j].reset ? 0.0f : float(h_n);
            h_t = zoneout(float(d.zoneout.h[flat * d.zoneout.h_stride + column]), h_prev, h_t);
            c = zoneout(float(d.zoneout.c[flat * d.zoneout.c_stride + column]), c_prev, c);
          }
          h = T(h_t);
        }
        const int64_t at = flat * call.output_stride + column;
        T seen = h;  // by W_hh
        if (d.h_mask && exists) seen = T(float(h) * float(d.h_mask[batch_row * hidden + column]));
        announce(d.exchange + at, seen, exists, aligned);
        if (!exists) continue;
        if (d.h_mask) d.output[at] = h;
        if (live && (d.zoneout.h || block.is_last_step(t, i))) h_n = h;
        if (live && block.is_last_step(t, i)) d.c_n[batch_row * hidden + column] = c;
        if (d.cells) d.cells[flat * hidden + column] = c;
        if (call.save_gates) store_gates(d.gates + flat * 4 * hidden, column, hidden, gates);
      }
      __syncthreads();  // before the next pass overwrites the sums
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
    aligned = aligned && is_aligned(call.direction[d].exchange, call.output_stride * size) &&
              is_aligned(call.direction[d].h_0, call.sequence.hidden_size * size);
  return Launcher<Kernel, PersistentForward<T>>{call, task, tiling, aligned, stream}
      .template run_dtype<T>();
}

#if defined(FASTLSTM_TRACE)
cudaError_t take_forward_trace(long long* host) { return take_entries(host); }
#endif

template cudaError_t launch_persistent_forward(const PersistentForward<float>&, const Task&,
                                               const Tiling&, cudaStream_t);
template cudaError_t launch_persistent_forward(const PersistentForward<bfloat16>&, const Task&,
                                               const Tiling&, cudaStream_t);
template cudaError_t launch_persistent_forward(const PersistentForward<float16>&, const Task&,
                                               const Tiling&, cudaStream_t);

}  // namespace fastlstm
