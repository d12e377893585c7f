// The persistent engine, forward: one launch computes all steps. Each block keeps its slice of W_hh
// in shared memory, with the four gates of its units.
//
// In a step each warp polls its eighth of h_{t-1} until it is there, loads it directly into mma
// operands, and stores partial sums to shared memory. Then each thread takes one unit of a row,
// adds the partial sums and the input's part of the gates, and stores h_t, in `exchange` for the
// other blocks. The latency of h_t through L2 bounds a step. If a block has several passes, it
// computes one while h of the others is on its way.
#include "../equations/lstm_step.h"
#include "persistent_block.h"

namespace fastlstm {
namespace {

template <class P, int kUnits, int kRowTile>
struct PersistentForward {
  using T = typename P::T;
  using Args = ForwardLaunch<T>;

  // What a unit of a row needs in a step besides h_{t-1}.
  struct Inputs {
    ThreadUnit at;
    T* h_exchange;        // where h_t is published
    Gates<T> from_x;      // the input's part of the gates, x W_ih^T + b
    unsigned char reset;  // whether the state is zeroed before the step
  };
  struct Result {
    Gates<float> gates;
    float c;
    T h;
  };

  const Args& args;
  const Tiling& tiling;
  const Block<P, 4 * kUnits, kUnits, kRowTile> block{args.sequence, tiling, args.first_reverse,
                                                     tiling.exchange_width};
  const ForwardDirection<T> d = in_registers(args.direction, block.direction);
  const int hidden_size = args.sequence.hidden_size;

  __device__ T* exchange_at(const ThreadUnit& at, int64_t flat_row) const {
    return d.exchange + flat_row * args.exchange_stride + block.column(at);
  }

  __device__ void prefetch_inputs(const ThreadUnit& at, int64_t flat_row) const {
    const int column = block.column(at);
    for (int gate = 0; gate < 4; ++gate)
      prefetch(d.gates + (flat_row * 4 + gate) * hidden_size + column);
    prefetch(exchange_at(at, flat_row));
  }

  __device__ Inputs load_inputs(const TimeStep& step, const ThreadUnit& at) const {
    Inputs in;
    in.at = at;
    const int column = block.column(at);
    const int64_t flat_row = step.offset + at.batch_row;
    in.h_exchange = exchange_at(at, flat_row);
    if (!at.live) return in;
    in.from_x = load_gates<T, T>(d.gates + flat_row * 4 * hidden_size, column, hidden_size);
    in.reset = block.is_reset(step.t, at.row);
    return in;
  }

  // The row that the slice multiplies: h_{t-1} of a row of the group.
  __device__ MultipliedRow<T> multiplied_row(const TimeStep& step, int row) const {
    if (!block.is_live(step.t, row) || block.is_reset(step.t, row)) return {};
    if (block.is_first_step(step.t, row))
      return {d.h_0 + int64_t(block.batch_row[row]) * block.k_size, false};
    return {d.exchange + (step.offset_before + block.batch_row[row]) * args.exchange_stride, true};
  }

  __device__ Result compute_and_publish(const Inputs& in) const {
    const ThreadUnit& at = in.at;
    if (at.pass_row >= kRowTile) return {};  // all lanes of a warp return, or all call publish
    Result result = {{0.0f, 0.0f, 0.0f, 0.0f}, 0.0f, T(0.0f)};
    if (at.live) {
      const auto from_h = block.template sums<Gates<float>>(at.pass_row, 4 * at.unit);
      const auto gates = activate(to_float(in.from_x) + from_h);
      const float c_prev = block.cell_state_of(at);
      const float c = next_cell(gates, in.reset ? 0.0f : c_prev);
      result = {gates, c, T(hidden_state(gates.o, c))};
    }
    publish(in.h_exchange, result.h, at.unit, at.is_exchanged);
    return result;
  }

  __device__ void store(const TimeStep& step, const ThreadUnit& at, Result result) const {
    if (!at.exists) return;
    const int column = block.column(at);
    const int64_t flat_row = step.offset + at.batch_row;
    const bool last = at.live && block.is_last_step(step.t, at.row);
    if (at.live)
      block.cell_state_of(at) = result.c;
    else
      result.c = block.cell_state_of(at);
    if (d.output != d.exchange) d.output[flat_row * args.output_stride + column] = result.h;
    if (last) d.h_n[block.state_index(at)] = result.h, d.c_n[block.state_index(at)] = result.c;
    if (d.cells) d.cells[flat_row * hidden_size + column] = result.c;
    if (args.save_gates)
      store_gates(d.gates + flat_row * 4 * hidden_size, column, hidden_size, result.gates);
  }

  // Runs all steps. Row 4 u + gate of the slice is row gate * H + first_unit + u of W_hh.
  __device__ void walk() const {
    block.load(d.c_n, [&](int row, int k) {
      const int gate = row % 4, unit = row / 4;
      return unit < block.units && k < hidden_size
                 ? d.w_hh[int64_t(gate * hidden_size + block.first_unit + unit) * hidden_size + k]
                 : T(0.0f);
    });
    block.run(*this, block.reverse);
  }
};

}  // namespace

template <typename T>
cudaError_t launch_walk(const ForwardLaunch<T>& args, const Tiling& tiling, cudaStream_t stream) {
  return launch_planned<PersistentForward>(args, tiling, stream);
}

template cudaError_t launch_walk(const ForwardLaunch<float>&, const Tiling&, cudaStream_t);
template cudaError_t launch_walk(const ForwardLaunch<bfloat16>&, const Tiling&, cudaStream_t);
template cudaError_t launch_walk(const ForwardLaunch<float16>&, const Tiling&, cudaStream_t);

}  // namespace fastlstm
