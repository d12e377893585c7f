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

// A unit of a row in a step: what it needs besides dL/dh from the future.
template <typename T>
struct Item {
  Place place;
  int64_t state;  // its unit in [B,H]
  GatesAddress<T> d_gates;
  Gates<Kept<T>> gates;
  float c, c_prev, d_cells;
  Kept<T> d_output, d_h, h_mask, zoneout_h, zoneout_c;
  unsigned char reset;
};

template <class P, int kUnits, int kTile>
struct BackwardWalk {
  using T = typename P::T;
  static constexpr int kItems = (kUnits * kTile + kThreads - 1) / kThreads;  // of a thread

  // A step, its neighbours in time, and one that is still far off.
  struct Step {
    int n, t, t_next, t_soon;
    int64_t offset, offset_prev, offset_next, offset_soon;
  };

  const PersistentBackward<T>& call;
  const Block<P, kUnits, kUnits, kTile> block;
  const BackwardDirection<T> d;
  const int hidden, width;

  __device__ BackwardWalk(const PersistentBackward<T>& call, const Tiling& tiling, bool aligned)
      : call(call),
        block(call.sequence, tiling, call.first_reverse, 4, aligned),
        d(fetch(call.direction, block.direction)),
        hidden(call.sequence.hidden_size),
        width(tiling.exchange_width) {}

  __device__ void load_weights() const {
    load_slice<P, kUnits>(block.slice, block.chunks, [&](int unit, int k) {
      const int gate = k / width, from = k % width;
      return unit < block.units && gate < 4 && from < hidden
                 ? d.w_hh[int64_t(gate * hidden + from) * hidden + block.first_unit + unit]
                 : T(0.0f);
    });
  }

  __device__ void load_d_cells() const {
    for (int i = block.thread; i < block.tiling.group_rows * kUnits; i += kThreads)
      if (block.length[i / kUnits] >= 0 && i % kUnits < block.units)
        block.state[i] =
            d.d_c[int64_t(block.batch_row[i / kUnits]) * hidden + block.first_unit + i % kUnits];
  }

  __device__ Step step(int n, int64_t offset_next) const {
    const int t = block.reverse ? call.sequence.steps - 1 - n : n, later = block.reverse ? -1 : 1;
    const int t_prev = t - later, t_soon = t - kPrefetch * later;
    return {n,
            t,
            t + later,
            t_soon,
            block.offset(t),
            block.offset(t_prev),
            offset_next,
            block.offset(t_soon)};
  }

  __device__ T* d_gates_at(const Place& place, int64_t flat_row) const {
    return d.d_gates + flat_row * 4 * width + block.first_unit + place.unit;
  }
  __device__ GatesAddress<T> address_of(const Place& place, int64_t flat_row) const {
    return gates_address(d_gates_at(place, flat_row), width, place.unit, block.aligned);
  }

  __device__ void prefetch_step(const Step& step, const Place& place) const {
    if (step.t_soon < 0 || !place.exists || !block.is_live(step.t_soon, place.i)) return;
    const int column = block.first_unit + place.unit;
    const int64_t flat_row = step.offset_soon + place.batch_row;
    for (int gate = 0; gate < 4; ++gate) {
      prefetch(d.gates + (flat_row * 4 + gate) * hidden + column);
      if (kPrefetchExchange) prefetch(d_gates_at(place, flat_row) + gate * width);
    }
    prefetch(d.cells + flat_row * hidden + column);
    if (d.d_output) prefetch(d.d_output + flat_row * call.d_output_stride + column);
    prefetch(d.zoneout, flat_row, column);
  }

  // All that does not come from the neighbours, before waiting for them.
  __device__ Item<T> ask(const Step& step, const Place& place) const {
    prefetch_step(step, place);
    const int column = block.first_unit + place.unit;
    const int64_t row = place.batch_row, flat_row = step.offset + row;
    Item<T> item;
    item.place = place;
    item.state = row * hidden + column;
    if (kHoisting) item.d_gates = address_of(place, flat_row);
    if (!place.live) return item;
    item.gates = load_gates<T, Kept<T>>(d.gates + flat_row * 4 * hidden, column, hidden);
    item.c = d.cells[flat_row * hidden + column];
    item.reset = block.reset_flag(step.t, place.i);
    item.c_prev = block.is_first_step(step.t, place.i)
                      ? d.c_0[item.state]
                      : d.cells[(step.offset_prev + row) * hidden + column];
    item.d_output =
        d.d_output ? Kept<T>(d.d_output[flat_row * call.d_output_stride + column]) : Kept<T>(0.0f);
    // With zoneout: what it let through from the step after, whose place is d_h.
    item.d_h = d.zoneout.h || block.is_last_step(step.t, place.i) ? Kept<T>(d.d_h[item.state])
                                                                  : Kept<T>(0.0f);
    item.d_cells = d.d_cells ? d.d_cells[flat_row * hidden + column] : 0.0f;
    if (d.h_mask) item.h_mask = Kept<T>(d.h_mask[item.state]);
    if (d.zoneout.h) {
      item.zoneout_h = Kept<T>(d.zoneout.h[flat_row * d.zoneout.h_stride + column]);
      item.zoneout_c = Kept<T>(d.zoneout.c[flat_row * d.zoneout.c_stride + column]);
    }
    return item;
  }

  // d_gates of the step after, of this lane's row, 8 j + lane / 4 of the pass.
  __device__ Source<T> source(const Step& step, int pass, int j) const {
    const int i = pass * kTile + 8 * j + block.lane / 4;
    if (!block.is_live(step.t, i) || block.is_last_step(step.t, i) ||
        block.is_reset(step.t_next, i))
      return {};
    return {d.d_gates + (step.offset_next + block.batch_row[i]) * 4 * width, true};
  }

  // The cell equations backward: dL/d(gates); dL/dc is left behind.
  __device__ Gates<float> update(const Item<T>& item, float& dc) const {
    const auto gates = to_float(item.gates);
    const float c_prev = item.reset ? 0.0f : item.c_prev;
    float dh = block.template product<1>(item.place.row, item.place.unit).value[0];
    float c = item.c, kept_dc = 0.0f;
    if (d.h_mask) dh *= float(item.h_mask);
    dh += float(item.d_output) + float(item.d_h), dc += item.d_cells;
    if (d.zoneout.h) {
      c = next_cell(gates, c_prev);
      const float kept_dh = zoneout_backward(float(item.zoneout_h), dh);
      kept_dc = zoneout_backward(float(item.zoneout_c), dc);
      d.d_h[item.state] = T(item.reset ? 0.0f : kept_dh);
    }
    const auto d_gates = cell_backward(gates, c_prev, c, dh, dc);
    dc = item.reset ? 0.0f : dc + kept_dc;
    return d_gates;
  }

  __device__ void finish(const Step& step, const Item<T>& item) const {
    const Place& place = item.place;
    if (place.row >= kTile) return;  // whole warps
    float* const state = block.state + place.i * kUnits + place.unit;
    float dc = 0.0f;
    Gates<float> d_gates = {0.0f, 0.0f, 0.0f, 0.0f};
    if (place.live) {
      dc = *state;
      d_gates = update(item, dc);
    }
    announce(kHoisting ? item.d_gates : address_of(place, step.offset + place.batch_row),
             Gates<T>{T(d_gates.i), T(d_gates.f), T(d_gates.g), T(d_gates.o)}, place.unit,
             place.exchanged, block.aligned);
    if (place.live) *state = dc;
  }

  __device__ void run(const Step& step, int pass) const {
    Item<T> items[kItems];
#pragma unroll
    for (int j = 0; j < kItems; ++j) items[j] = ask(step, block.place(step.t, pass, j));
    if (block.pass_is_live(step.t, pass)) {
      Source<T> sources[kTile / 8];
#pragma unroll
      for (int j = 0; j < kTile / 8; ++j) sources[j] = source(step, pass, j);
      block.multiply(sources, step.n);
    }
    __syncthreads();
#pragma unroll
    for (int j = 0; j < kItems; ++j) finish(step, items[j]);
    __syncthreads();  // before the next pass overwrites the sums
  }

  // d_gates of the first step of this lane's row.
  __device__ Source<T> first_source(int pass, int j) const {
    const int i = pass * kTile + 8 * j + block.lane / 4;
    if (!block.is_live(0, i)) return {};
    const int t = block.reverse ? block.length[i] - 1 : 0;
    if (block.is_reset(t, i)) return {};
    return {d.d_gates + (block.offset(t) + block.batch_row[i]) * 4 * width, true};
  }

  // dL/dh_0, dL/dc_0. A row of length 0 keeps dL/dh_n, dL/dc_n.
  __device__ void run_initial_state(int pass) const {
    Source<T> sources[kTile / 8];
#pragma unroll
    for (int j = 0; j < kTile / 8; ++j) sources[j] = first_source(pass, j);
    block.multiply(sources, -1);
    __syncthreads();
    for (int j = 0; j < kItems; ++j) {
      const Place place = block.place(0, pass, j);
      if (!place.live) continue;
      const int64_t at = int64_t(place.batch_row) * hidden + block.first_unit + place.unit;
      float dh = block.template product<1>(place.row, place.unit).value[0];
      if (d.h_mask) dh *= float(d.h_mask[at]);
      d.d_h[at] = T(d.zoneout.h ? dh + float(d.d_h[at]) : dh);
      d.d_c[at] = block.state[place.i * kUnits + place.unit];
    }
    __syncthreads();
  }
};

template <class P, int kUnits, int kTile>
__global__ void __launch_bounds__(kThreads, 1)
    backward_kernel(PersistentBackward<typename P::T> call, Tiling tiling, bool aligned) {
  const BackwardWalk<P, kUnits, kTile> walk(call, tiling, aligned);
  walk.load_weights();
  __syncthreads();
  walk.load_d_cells();
  __syncthreads();
  int64_t offset_next = 0;
  for (int n = call.sequence.steps - 1; n >= 0; --n) {
    const auto step = walk.step(n, offset_next);
    for (int pass = 0; pass < walk.block.passes; ++pass) walk.run(step, pass);
    offset_next = step.offset;
  }
  if (!call.state_needs_grad) return;
  for (int pass = 0; pass < walk.block.passes; ++pass) walk.run_initial_state(pass);
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
  const int64_t row_bytes = 4 * sizeof(T) * tiling.exchange_width;
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
