// Persistent engine, forward: one launch walks the whole sequence. W_hh never leaves shared memory;
// h passes from block to block through `output`, once per step.
//
// Per step a warp waits for the blocks that computed its eighth of h_{t-1}, loads that straight
// into mma operands and leaves partial sums in shared memory; then each thread takes a unit of a
// row, adds the sums and the input's part, and stores h_t. What limits it is latency: the flags,
// one trip to L2, two barriers. Inputs that do not depend on neighbours are loaded before the wait.
#include <type_traits>

#include "persistent_tile.h"

namespace fastlstm {
namespace {

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

  for (int n = 0; n < steps; ++n) {
    const int t = block.reverse ? steps - 1 - n : n, t_prev = block.reverse ? t + 1 : t - 1;
    bool waited = n == 0;
    for (int pass = 0; pass < block.passes; ++pass) {
      Gates<float> x[kItems];
#pragma unroll
      for (int item = 0; item < kItems; ++item) {
        const int index = threadIdx.x + item * kThreads, unit = index % kUnits;
        const int i = pass * kTile + index / kUnits;
        if (index >= kUnits * kTile || unit >= block.units || !block.is_live(t, i)) continue;
        const T* gates = d.gates + block.flat_row(t, i) * 4 * hidden + block.first_unit + unit;
        x[item] = {float(gates[0]), float(gates[hidden]), float(gates[2 * hidden]),
                   float(gates[3 * hidden])};
      }

      if (block.pass_is_live(t, pass)) {
        if (!waited) block.wait(n);
        waited = true;
        const T* source[kTile / 8];
#pragma unroll
        for (int j = 0; j < kTile / 8; ++j) {
          const int i = pass * kTile + 8 * j + block.lane / 4;
          source[j] = nullptr;
          if (!block.is_live(t, i) || block.is_reset(t, i)) continue;
          source[j] = block.is_first_step(t, i)
                          ? d.h_0 + int64_t(block.batch_row[i]) * hidden
                          : d.output + block.flat_row(t_prev, i) * call.output_stride;
        }
        block.multiply(source, aligned);
      }
      __syncthreads();

#pragma unroll
      for (int item = 0; item < kItems; ++item) {
        const int index = threadIdx.x + item * kThreads, unit = index % kUnits;
        const int row = index / kUnits, i = pass * kTile + row;
        if (index >= kUnits * kTile || unit >= block.units) continue;
        const int column = block.first_unit + unit;
        if (block.is_live(t, i)) {
          const Gates<float> pre = {x[item].i + block.product(row, unit),
                                    x[item].f + block.product(row, kUnits + unit),
                                    x[item].g + block.product(row, 2 * kUnits + unit),
                                    x[item].o + block.product(row, 3 * kUnits + unit)};
          float& c = block.state[i * kUnits + unit];
          const Gates<float> gates = activate(pre);
          c = next_cell(gates, block.is_reset(t, i) ? 0.0f : c);
          const T h = T(fastlstm::hidden(gates.o, c));
          const int64_t flat = block.flat_row(t, i);
          store_exchanged(d.output + flat * call.output_stride + column, h);
          if (d.cells) d.cells[flat * hidden + column] = c;
          if (call.save_gates) {
            T* saved = d.gates + flat * 4 * hidden + column;
            saved[0] = T(gates.i);
            saved[hidden] = T(gates.f);
            saved[2 * hidden] = T(gates.g);
            saved[3 * hidden] = T(gates.o);
          }
          if (block.is_last_step(t, i)) {
            d.h_n[int64_t(block.batch_row[i]) * hidden + column] = h;
            d.c_n[int64_t(block.batch_row[i]) * hidden + column] = c;
          }
        } else if (block.is_padding(t, i)) {
          const int64_t flat = block.flat_row(t, i);
          d.output[flat * call.output_stride + column] = T(0.0f);
          if (d.cells) d.cells[flat * hidden + column] = block.state[i * kUnits + unit];
          if (call.save_gates)
            for (int gate = 0; gate < 4; ++gate)
              d.gates[flat * 4 * hidden + gate * hidden + column] = T(0.0f);
        }
      }
      __syncthreads();
    }
    block.publish(n + 1);
  }
}

template <class P, int kUnits, int kTile>
cudaError_t launch_tile(const PersistentForward<typename P::T>& call, const Task& task,
                        const Tiling& tiling, cudaStream_t stream) {
  const auto is_aligned = [&](const void* pointer, int64_t stride) {
    return reinterpret_cast<uintptr_t>(pointer) % 16 == 0 &&
           stride * static_cast<int64_t>(sizeof(typename P::T)) % 16 == 0;
  };
  bool aligned = is_aligned(nullptr, call.output_stride);
  for (int d = 0; d < tiling.directions; ++d)
    aligned = aligned && is_aligned(call.direction[d].output, call.output_stride) &&
              is_aligned(call.direction[d].h_0, call.sequence.hidden_size);
  return launch_cooperative(forward_kernel<P, kUnits, kTile>,
                            dim3(static_cast<unsigned>(tiling.blocks())), dim3(kThreads),
                            static_cast<size_t>(SharedLayout(task, tiling).total()), stream, call,
                            tiling, aligned);
}

template <class P, int kUnits>
cudaError_t launch_units(const PersistentForward<typename P::T>& call, const Task& task,
                         const Tiling& tiling, cudaStream_t stream) {
  if constexpr (is_compiled(std::is_same<P, Ffma>::value, kUnits, 16))
    if (tiling.row_tile == 16) return launch_tile<P, kUnits, 16>(call, task, tiling, stream);
  if (tiling.row_tile == 8) return launch_tile<P, kUnits, 8>(call, task, tiling, stream);
  return cudaErrorInvalidValue;
}

template <class P>
cudaError_t launch_kind(const PersistentForward<typename P::T>& call, const Task& task,
                        const Tiling& tiling, cudaStream_t stream) {
  if (tiling.units == 8) return launch_units<P, 8>(call, task, tiling, stream);
  if (tiling.units == 16) return launch_units<P, 16>(call, task, tiling, stream);
  if (tiling.units == 32) return launch_units<P, 32>(call, task, tiling, stream);
  return cudaErrorInvalidValue;
}

}  // namespace

template <>
cudaError_t launch_persistent_forward(const PersistentForward<float>& call, const Task& task,
                                      const Tiling& tiling, cudaStream_t stream) {
  return task.ffma() ? launch_kind<Ffma>(call, task, tiling, stream)
                     : launch_kind<Tf32Mma>(call, task, tiling, stream);
}
template <>
cudaError_t launch_persistent_forward(const PersistentForward<bfloat16>& call, const Task& task,
                                      const Tiling& tiling, cudaStream_t stream) {
  return launch_kind<BFloat16Mma>(call, task, tiling, stream);
}
template <>
cudaError_t launch_persistent_forward(const PersistentForward<float16>& call, const Task& task,
                                      const Tiling& tiling, cudaStream_t stream) {
  return launch_kind<Float16Mma>(call, task, tiling, stream);
}

}  // namespace fastlstm
