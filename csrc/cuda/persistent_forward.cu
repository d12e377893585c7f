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

// A unit of a row in a step: what does not come from the neighbours.
template <typename T>
struct Item {
  Place place;
  T* exchanged;                                  // where h_t goes
  Gates<Kept<T>> from_x;                         // the input's part
  Kept<T> h_mask, zoneout_h, zoneout_c, h_prev;  // the last three: with zoneout
  unsigned char reset;
};

template <typename T>
struct Result {
  Gates<float> gates;
  float c;
  T h;
};

template <class P, int kUnits, int kTile>
struct ForwardWalk {
  using T = typename P::T;
  static constexpr int kItems = (kUnits * kTile + kThreads - 1) / kThreads;  // of a thread

  // A step, the one before it and one that is still far off.
  struct Step {
    int n, t, t_soon;
    int64_t offset, offset_prev, offset_soon;
  };

  const PersistentForward<T>& call;
  const Block<P, 4 * kUnits, kUnits, kTile> block;
  const ForwardDirection<T> d;
  const int hidden;

  __device__ ForwardWalk(const PersistentForward<T>& call, const Tiling& tiling, bool aligned)
      : call(call),
        block(call.sequence, tiling, call.first_reverse, 1, aligned),
        d(fetch(call.direction, block.direction)),
        hidden(call.sequence.hidden_size) {}

  __device__ void load_weights() const {
    load_slice<P, 4 * kUnits>(block.slice, block.chunks, [&](int row, int k) {
      const int gate = row % 4, unit = row / 4;
      return unit < block.units && k < hidden
                 ? d.w_hh[int64_t(gate * hidden + block.first_unit + unit) * hidden + k]
                 : T(0.0f);
    });
  }

  __device__ void load_cells() const {
    for (int i = block.thread; i < block.tiling.group_rows * kUnits; i += kThreads)
      if (block.length[i / kUnits] >= 0 && i % kUnits < block.units)
        block.state[i] =
            d.c_0[int64_t(block.batch_row[i / kUnits]) * hidden + block.first_unit + i % kUnits];
  }

  __device__ Step step(int n, int64_t offset_prev) const {
    const int last = call.sequence.steps - 1, soon = n + kPrefetch;
    const int t = block.reverse ? last - n : n, t_soon = block.reverse ? last - soon : soon;
    return {n, t, t_soon, block.offset(t), offset_prev, block.offset(t_soon)};
  }

  // A unit of a row in [B,H].
  __device__ int64_t state_of(const Place& place) const {
    return int64_t(place.batch_row) * hidden + block.first_unit + place.unit;
  }

  __device__ T* exchange_at(const Place& place, int64_t flat_row) const {
    return d.exchange + flat_row * call.exchange_stride + block.first_unit + place.unit;
  }

  __device__ void prefetch_step(const Step& step, const Place& place) const {
    if (step.t_soon < 0 || !place.exists || !block.is_live(step.t_soon, place.i)) return;
    const int column = block.first_unit + place.unit;
    const int64_t flat_row = step.offset_soon + place.batch_row;
    for (int gate = 0; gate < 4; ++gate)
      prefetch(d.gates + (flat_row * 4 + gate) * hidden + column);
    if (kPrefetchExchange) prefetch(exchange_at(place, flat_row));
    prefetch(d.zoneout, flat_row, column);
  }

  // All that does not come from the neighbours, before waiting for them.
  __device__ Item<T> ask(const Step& step, const Place& place) const {
    prefetch_step(step, place);
    Item<T> item;
    item.place = place;
    const int column = block.first_unit + place.unit;
    const int64_t flat_row = step.offset + place.batch_row;
    if (kHoisting) item.exchanged = exchange_at(place, flat_row);
    if (!place.live) return item;
    item.from_x = load_gates<T, Kept<T>>(d.gates + flat_row * 4 * hidden, column, hidden);
    item.reset = block.reset_flag(step.t, place.i);
    if (d.h_mask) item.h_mask = Kept<T>(d.h_mask[state_of(place)]);
    if (d.zoneout.h) {
      item.zoneout_h = Kept<T>(d.zoneout.h[flat_row * d.zoneout.h_stride + column]);
      item.zoneout_c = Kept<T>(d.zoneout.c[flat_row * d.zoneout.c_stride + column]);
      item.h_prev = Kept<T>(d.h_n[state_of(place)]);
    }
    return item;
  }

  // h_{t-1} of this lane's row, 8 j + lane / 4 of the pass.
  __device__ Source<T> source(const Step& step, int pass, int j) const {
    const int i = pass * kTile + 8 * j + block.lane / 4;
    if (!block.is_live(step.t, i) || block.is_reset(step.t, i)) return {};
    if (block.is_first_step(step.t, i))
      return {d.h_0 + int64_t(block.batch_row[i]) * block.depth, false};
    return {d.exchange + (step.offset_prev + block.batch_row[i]) * call.exchange_stride, true};
  }

  // The cell equations.
  __device__ Result<T> update(const Item<T>& item, float c_prev) const {
    const auto from_h = block.template product<4>(item.place.row, 4 * item.place.unit);
    const auto from_x = to_float(item.from_x);
    const auto gates =
        activate(Gates<float>{from_x.i + from_h.value[0], from_x.f + from_h.value[1],
                              from_x.g + from_h.value[2], from_x.o + from_h.value[3]});
    if (item.reset) c_prev = 0.0f;
    float c = next_cell(gates, c_prev), h = fastlstm::hidden(gates.o, c);
    if (d.zoneout.h) {
      h = zoneout(float(item.zoneout_h), item.reset ? 0.0f : float(item.h_prev), h);
      c = zoneout(float(item.zoneout_c), c_prev, c);
    }
    return {gates, c, T(h)};
  }

  __device__ float& cell_state(const Place& place) const {
    return block.state[place.i * kUnits + place.unit];
  }

  // Lets the others have h_t.
  __device__ Result<T> finish(const Step& step, const Item<T>& item) const {
    const Place& place = item.place;
    if (place.row >= kTile) return {};  // whole warps
    Result<T> result = {{0.0f, 0.0f, 0.0f, 0.0f}, 0.0f, T(0.0f)};
    if (place.live) result = update(item, cell_state(place));
    T seen = result.h;  // by W_hh
    if (d.h_mask && place.live) seen = T(float(result.h) * float(item.h_mask));
    T* const to = kHoisting ? item.exchanged : exchange_at(place, step.offset + place.batch_row);
    announce(to, seen, place.unit, place.exchanged, block.aligned);
    return result;
  }

  // What nobody waits for.
  __device__ void store(const Step& step, const Item<T>& item, Result<T> result) const {
    const Place& place = item.place;
    if (!place.exists) return;
    const int column = block.first_unit + place.unit;
    const int64_t flat_row = step.offset + place.batch_row;
    const bool last = place.live && block.is_last_step(step.t, place.i);
    if (place.live)
      cell_state(place) = result.c;
    else
      result.c = cell_state(place);
    if (d.output != d.exchange) d.output[flat_row * call.output_stride + column] = result.h;
    if (last || (place.live && d.zoneout.h)) d.h_n[state_of(place)] = result.h;
    if (last) d.c_n[state_of(place)] = result.c;
    if (d.cells) d.cells[flat_row * hidden + column] = result.c;
    if (call.save_gates) store_gates(d.gates + flat_row * 4 * hidden, column, hidden, result.gates);
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
    Result<T> results[kItems];
#pragma unroll
    for (int j = 0; j < kItems; ++j) results[j] = finish(step, items[j]);
#pragma unroll
    for (int j = 0; j < kItems; ++j) store(step, items[j], results[j]);
    __syncthreads();  // before the next pass overwrites the sums
  }
};

template <class P, int kUnits, int kTile>
__global__ void __launch_bounds__(kThreads, 1)
    forward_kernel(PersistentForward<typename P::T> call, Tiling tiling, bool aligned) {
  const ForwardWalk<P, kUnits, kTile> walk(call, tiling, aligned);
  walk.load_weights();
  __syncthreads();
  walk.load_cells();
  __syncthreads();
  int64_t offset_prev = 0;
  for (int n = 0; n < call.sequence.steps; ++n) {
    const auto step = walk.step(n, offset_prev);
    for (int pass = 0; pass < walk.block.passes; ++pass) walk.run(step, pass);
    offset_prev = step.offset;
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
    aligned = aligned && is_aligned(call.direction[d].exchange, call.exchange_stride * size) &&
              is_aligned(call.direction[d].h_0, tiling.exchange_width * size);
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
