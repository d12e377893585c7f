// A call of the tiled engine: its weights are packed for it.
#include <numeric>

#include "cpu/walk/forward_walk.h"
#include "cpu/walk/tiled.h"

namespace fastlstm {

CpuTask task_of(const Layer& layer) {
  const Sizes s = layer.sizes();
  CpuTask task{dtype_of(layer.input.scalar_type()),
               s.directions,
               s.steps,
               s.batch,
               s.flat_rows,
               s.input_size,
               s.hidden_size,
               s.output_size,
               layer.projects(),
               layer.normalizes()};
  task.only_dense =
      !layer.packed() && !layer.lengths && !layer.reset && !layer.h_mask && !layer.zones_out();
  if (layer.lengths) {
    const Tensor lengths = layer.lengths->contiguous();
    const int64_t* first = lengths.const_data_ptr<int64_t>();
    task.rows = std::accumulate(first, first + s.batch, int64_t(0));
  }
  return task;
}

template <typename T, typename W>
ForwardResult tiled_forward(const Layer& layer, const CpuPlan& plan, bool save_cells,
                            bool save_gates) {
  if constexpr (!kWidens<T, W>)
    if (plan.one_step) return one_step_forward<T>(layer, save_cells, save_gates);
  const Rows rows(layer);
  const ForwardTensors<T> to(layer, rows, save_cells, save_gates);
  std::vector<PackedDirection<W>> weights;
  for (int64_t d = 0; d < layer.num_directions(); ++d)
    weights.push_back(pack_direction<T, W>(layer, d, plan.grid.unit_groups));
  walk_forward<T, W>(layer, plan, rows, to, weights);
  return {to.output, to.h_n, to.c_n.to(layer.c_0.scalar_type()), to.cells, to.gates};
}

#define FASTLSTM_INSTANTIATE(T, W)                                                      \
  template ForwardResult tiled_forward<T, W>(const Layer&, const CpuPlan&, bool, bool); \
  template FASTLSTM_WALK_FORWARD(T, W);
FASTLSTM_FOR_EACH_PRODUCT(FASTLSTM_INSTANTIATE)
#define FASTLSTM_OF_INTEGERS(W, name, unpacked, bits, group) FASTLSTM_INSTANTIATE(float, W)
FASTLSTM_FOR_EACH_INTEGER_FORMAT(FASTLSTM_OF_INTEGERS)
#undef FASTLSTM_OF_INTEGERS
#undef FASTLSTM_INSTANTIATE

}  // namespace fastlstm
