// Persistent engine, backward: the steps of the forward walk in opposite order, in one launch.
//
// A block owns columns of W_hh (all 4H rows of its units), so dL/dh_{t-1} of its units is whole in
// the block: it reads everybody's d_gates of the step that came after and no sums leave it. d_gates
// is a buffer of its own, the saved gates stay as they are (retain_graph). One more product after
// the last step gives dL/dh_0.
#include <type_traits>

#include "persistent_tile.h"

namespace fastlstm {
namespace {

template <class P, int kUnits, int kTile>
__global__ void __launch_bounds__(kThreads, 1)
    backward_kernel(PersistentBackward<typename P::T> call, Tiling tiling, bool aligned) {
  using T = typename P::T;
  constexpr int kItems = (kUnits * kTile + kThreads - 1) / kThreads;  // units x rows of a thread
  const int hidden = call.sequence.hidden_size, steps = call.sequence.steps;
  const Block<P, kUnits, kUnits, kTile> block(call.sequence, tiling, call.first_reverse, call.flags,
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

  // What a unit of a row needs besides dL/dh from the future.
  struct Inputs {
    Gates<float> gates;
    float c, c_prev, dh, dc;
  };

  for (int n = steps - 1; n >= 0; --n) {
    const int t = block.reverse ? steps - 1 - n : n;
    const int t_prev = block.reverse ? t + 1 : t - 1, t_next = block.reverse ? t - 1 : t + 1;
    const int published = steps - 1 - n;
    bool waited = published == 0;
    for (int pass = 0; pass < block.passes; ++pass) {
      Inputs in[kItems];
#pragma unroll
      for (int item = 0; item < kItems; ++item) {
        const int index = threadIdx.x + item * kThreads, unit = index % kUnits;
        const int i = pass * kTile + index / kUnits;
        if (index >= kUnits * kTile || unit >= block.units || !block.is_live(t, i)) continue;
        const int column = block.first_unit + unit;
        const int64_t flat = block.flat_row(t, i), row = block.batch_row[i];
        const T* gates = d.gates + flat * 4 * hidden + column;
        in[item].gates = {float(gates[0]), float(gates[hidden]), float(gates[2 * hidden]),
                          float(gates[3 * hidden])};
        in[item].c = d.cells[flat * hidden + column];
        in[item].c_prev = block.is_reset(t, i) ? 0.0f
                          : block.is_first_step(t, i)
                              ? d.c_0[row * hidden + column]
                              : d.cells[block.flat_row(t_prev, i) * hidden + column];
        in[item].dh = d.d_output ? float(d.d_output[flat * call.d_output_stride + column]) : 0.0f;
        if (block.is_last_step(t, i)) in[item].dh += float(d.d_h[row * hidden + column]);
        in[item].dc = d.d_cells ? d.d_cells[flat * hidden + column] : 0.0f;
      }

      if (block.pass_is_live(t, pass)) {
        if (!waited) block.wait(published);
        waited = true;
        const T* source[kTile / 8];
#pragma unroll
        for (int j = 0; j < kTile / 8; ++j) {
          const int i = pass * kTile + 8 * j + block.lane / 4;
          const bool carries =
              block.is_live(t, i) && !block.is_last_step(t, i) && !block.is_reset(t_next, i);
          source[j] = carries ? d.d_gates + block.flat_row(t_next, i) * 4 * hidden : nullptr;
        }
        block.multiply(source, aligned);
      }
      __syncthreads();

#pragma unroll
      for (int item = 0; item < kItems; ++item) {
        const int index = threadIdx.x + item * kThreads, unit = index % kUnits;
        const int row = index / kUnits, i = pass * kTile + row;
        if (index >= kUnits * kTile || unit >= block.units) continue;
        Gates<float> d_gates = {0.0f, 0.0f, 0.0f, 0.0f};
        if (block.is_live(t, i)) {
          float& dc = block.state[i * kUnits + unit];
          dc += in[item].dc;
          d_gates = cell_backward(in[item].gates, in[item].c_prev, in[item].c,
                                  in[item].dh + block.product(row, unit), dc);
          if (block.is_reset(t, i)) dc = 0.0f;
        } else if (!block.is_padding(t, i)) {
          continue;
        }
        T* out = d.d_gates + block.flat_row(t, i) * 4 * hidden + block.first_unit + unit;
        store_exchanged(out, T(d_gates.i));
        store_exchanged(out + hidden, T(d_gates.f));
        store_exchanged(out + 2 * hidden, T(d_gates.g));
        store_exchanged(out + 3 * hidden, T(d_gates.o));
      }
      __syncthreads();
    }
    block.publish(published + 1);
  }

  // dL/dh_0, dL/dc_0. A row of length 0 keeps dL/dh_n, dL/dc_n.
  block.wait(steps);
  for (int pass = 0; pass < block.passes; ++pass) {
    const T* source[kTile / 8];
#pragma unroll
    for (int j = 0; j < kTile / 8; ++j) {
      const int i = pass * kTile + 8 * j + block.lane / 4;
      source[j] = nullptr;
      if (!block.is_live(0, i)) continue;
      const int t = block.reverse ? block.length[i] - 1 : 0;
      if (!block.is_reset(t, i)) source[j] = d.d_gates + block.flat_row(t, i) * 4 * hidden;
    }
    block.multiply(source, aligned);
    __syncthreads();
    for (int index = threadIdx.x; index < kUnits * kTile; index += kThreads) {
      const int unit = index % kUnits, row = index / kUnits, i = pass * kTile + row;
      if (unit >= block.units || !block.is_live(0, i)) continue;
      const int64_t at = int64_t(block.batch_row[i]) * hidden + block.first_unit + unit;
      d.d_h[at] = T(block.product(row, unit));
      d.d_c[at] = block.state[i * kUnits + unit];
    }
    __syncthreads();
  }
}

template <class P, int kUnits, int kTile>
cudaError_t launch_tile(const PersistentBackward<typename P::T>& call, const Task& task,
                        const Tiling& tiling, cudaStream_t stream) {
  bool aligned = call.sequence.hidden_size * 4 * sizeof(typename P::T) % 16 == 0;
  for (int d = 0; d < tiling.directions; ++d)
    aligned = aligned && reinterpret_cast<uintptr_t>(call.direction[d].d_gates) % 16 == 0;
  return launch_cooperative(backward_kernel<P, kUnits, kTile>,
                            dim3(static_cast<unsigned>(tiling.blocks())), dim3(kThreads),
                            static_cast<size_t>(SharedLayout(task, tiling).total()), stream, call,
                            tiling, aligned);
}

template <class P, int kUnits>
cudaError_t launch_units(const PersistentBackward<typename P::T>& call, const Task& task,
                         const Tiling& tiling, cudaStream_t stream) {
  if constexpr (is_compiled(std::is_same<P, Ffma>::value, kUnits, 16))
    if (tiling.row_tile == 16) return launch_tile<P, kUnits, 16>(call, task, tiling, stream);
  if (tiling.row_tile == 8) return launch_tile<P, kUnits, 8>(call, task, tiling, stream);
  return cudaErrorInvalidValue;
}

template <class P>
cudaError_t launch_kind(const PersistentBackward<typename P::T>& call, const Task& task,
                        const Tiling& tiling, cudaStream_t stream) {
  if (tiling.units == 8) return launch_units<P, 8>(call, task, tiling, stream);
  if (tiling.units == 16) return launch_units<P, 16>(call, task, tiling, stream);
  if (tiling.units == 32) return launch_units<P, 32>(call, task, tiling, stream);
  return cudaErrorInvalidValue;
}

}  // namespace

template <>
cudaError_t launch_persistent_backward(const PersistentBackward<float>& call, const Task& task,
                                       const Tiling& tiling, cudaStream_t stream) {
  return task.ffma() ? launch_kind<Ffma>(call, task, tiling, stream)
                     : launch_kind<Tf32Mma>(call, task, tiling, stream);
}
template <>
cudaError_t launch_persistent_backward(const PersistentBackward<bfloat16>& call, const Task& task,
                                       const Tiling& tiling, cudaStream_t stream) {
  return launch_kind<BFloat16Mma>(call, task, tiling, stream);
}
template <>
cudaError_t launch_persistent_backward(const PersistentBackward<float16>& call, const Task& task,
                                       const Tiling& tiling, cudaStream_t stream) {
  return launch_kind<Float16Mma>(call, task, tiling, stream);
}

}  // namespace fastlstm
