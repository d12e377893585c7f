// The persistent engine, backward: one launch visits the steps of forward in the opposite order.
//
// A block keeps the columns of W_hh that belong to its units, with all 4H rows. For step t it loads
// d_gates of step t + 1 (in reverse: t - 1) of all units, which the blocks exchange, and computes
// dL/dh_t of its own units completely. So no partial sums leave a block. One more product after the
// last step gives dL/dh_0. L2 bounds a step, since every block of a row group loads all 4H values
// of a row. d_gates does not replace the gates: a second backward pass (retain_graph) reads them.
#include "../equations/lstm_step.h"
#include "persistent_block.h"

namespace fastlstm {
namespace {

// The members _before and _after of a TimeStep follow the order of this backward walk.
// is_first_step and is_last_step follow the order of the forward walk.
template <class P, int kUnits, int kRowTile>
struct PersistentBackward {
  using T = typename P::T;
  using Args = BackwardLaunch<T>;
  using Result = float;  // dL/dc_{t-1}

  // What a unit of a row needs in a step besides d_gates of other units.
  struct Inputs {
    ThreadUnit at;
    T *d_i, *d_f;  // where the gradients of gates i and f go; g and o follow at the same distance
    Gates<T> gates;
    float c, c_prev, d_cells;
    T d_output, d_h;
    unsigned char reset;
  };

  const Args& args;
  const Tiling& tiling;
  const Block<P, kUnits, kUnits, kRowTile> block{args.sequence, tiling, args.first_reverse,
                                                 4 * tiling.exchange_width};
  const BackwardDirection<T> d = in_registers(args.direction, block.direction);
  const int hidden_size = args.sequence.hidden_size, width = tiling.exchange_width;

  __device__ T* d_gates_at(const ThreadUnit& at, int64_t flat_row) const {
    return d.d_gates + flat_row * 4 * width + block.column(at);
  }

  __device__ void prefetch_inputs(const ThreadUnit& at, int64_t flat_row) const {
    const int column = block.column(at);
    for (int gate = 0; gate < 4; ++gate) {
      prefetch(d.gates + (flat_row * 4 + gate) * hidden_size + column);
      prefetch(d_gates_at(at, flat_row) + gate * width);
    }
    prefetch(d.cells + flat_row * hidden_size + column);
    if (d.d_output) prefetch(d.d_output + flat_row * args.d_output_stride + column);
  }

  __device__ Inputs load_inputs(const TimeStep& step, const ThreadUnit& at) const {
    const int column = block.column(at);
    const int64_t flat_row = step.offset + at.batch_row, index = block.state_index(at);
    Inputs in;
    in.at = at;
    in.d_i = d_gates_at(at, flat_row);
    in.d_f = in_register(in.d_i + width);
    if (!at.live) return in;
    in.gates = load_gates<T, T>(d.gates + flat_row * 4 * hidden_size, column, hidden_size);
    in.c = d.cells[flat_row * hidden_size + column];
    in.reset = block.is_reset(step.t, at.row);
    in.c_prev = block.is_first_step(step.t, at.row)
                    ? d.c_0[index]
                    : d.cells[(step.offset_after + at.batch_row) * hidden_size + column];
    in.d_output = d.d_output ? d.d_output[flat_row * args.d_output_stride + column] : T(0.0f);
    in.d_h = block.is_last_step(step.t, at.row) ? d.d_h[index] : T(0.0f);
    in.d_cells = d.d_cells ? d.d_cells[flat_row * hidden_size + column] : 0.0f;
    return in;
  }

  __device__ MultipliedRow<T> d_gates_of(int row, int64_t offset) const {
    return {d.d_gates + (offset + block.batch_row[row]) * 4 * width, true};
  }
  // The row that the slice multiplies: d_gates of the step before, or zeros if that gives none.
  __device__ MultipliedRow<T> multiplied_row(const TimeStep& step, int row) const {
    if (!block.is_live(step.t, row) || block.is_last_step(step.t, row) ||
        block.is_reset(step.t_before, row))
      return {};
    return d_gates_of(row, step.offset_before);
  }
  __device__ MultipliedRow<T> first_d_gates(int row) const {
    if (!block.is_live(0, row)) return {};
    const int t = block.reverse ? block.length[row] - 1 : 0;
    return block.is_reset(t, row) ? MultipliedRow<T>{} : d_gates_of(row, block.offset(t));
  }

  __device__ float compute_and_publish(const Inputs& in) const {
    const ThreadUnit& at = in.at;
    if (at.pass_row >= kRowTile) return 0.0f;  // all lanes of a warp return, or all call publish
    float dc = 0.0f;
    Gates<float> d_gates = {0.0f, 0.0f, 0.0f, 0.0f};
    if (at.live) {
      const float from_product = block.template sums<float>(at.pass_row, at.unit);
      const float dh = from_product + (float(in.d_output) + float(in.d_h));
      const float c_prev = in.reset ? 0.0f : in.c_prev;
      dc = block.cell_state_of(at) + in.d_cells;
      d_gates = step_backward(to_float(in.gates), c_prev, in.c, dh, dc, in.reset);
    }
    const int64_t gate_distance = in.d_f - in.d_i;  // `width`, without loading it again
    publish(in.d_i, T(d_gates.i), at.unit, at.is_exchanged);
    publish(in.d_f, T(d_gates.f), at.unit, at.is_exchanged);
    publish(in.d_f + gate_distance, T(d_gates.g), at.unit, at.is_exchanged);
    publish(in.d_f + 2 * gate_distance, T(d_gates.o), at.unit, at.is_exchanged);
    return dc;
  }

  __device__ void store(const TimeStep&, const ThreadUnit& at, float dc) const {
    if (at.live) block.cell_state_of(at) = dc;
  }

  // Runs all steps. Row u of the slice is column first_unit + u of W_hh: `width` values per gate.
  __device__ void walk() const {
    block.load(d.d_c, [&](int unit, int k) {
      const int gate = k / width, source_unit = k % width;
      return unit < block.units && gate < 4 && source_unit < hidden_size
                 ? d.w_hh[int64_t(gate * hidden_size + source_unit) * hidden_size +
                          block.first_unit + unit]
                 : T(0.0f);
    });
    block.run(*this, !block.reverse);
    if (!args.state_needs_grad) return;
    for (int pass = 0; pass < block.passes; ++pass) run_initial_state(pass);
  }

  // Computes dL/dh_0 and dL/dc_0. A row of length 0 keeps dL/dh_n and dL/dc_n.
  __device__ void run_initial_state(int pass) const {
    block.multiply(pass, [&](int row) { return first_d_gates(row); });
    __syncthreads();
    for (int j = 0; j < block.kUnitsPerThread; ++j) {
      const ThreadUnit at = block.thread_unit(0, pass, j);
      if (!at.live) continue;
      const int64_t index = block.state_index(at);
      d.d_h[index] = T(block.template sums<float>(at.pass_row, at.unit));
      d.d_c[index] = block.cell_state_of(at);
    }
    __syncthreads();
  }
};

}  // namespace

template <typename T>
cudaError_t launch_walk(const BackwardLaunch<T>& args, const Tiling& tiling, cudaStream_t stream) {
  return launch_planned<PersistentBackward>(args, tiling, stream);
}

template cudaError_t launch_walk(const BackwardLaunch<float>&, const Tiling&, cudaStream_t);
template cudaError_t launch_walk(const BackwardLaunch<bfloat16>&, const Tiling&, cudaStream_t);
template cudaError_t launch_walk(const BackwardLaunch<float16>&, const Tiling&, cudaStream_t);

}  // namespace fastlstm
