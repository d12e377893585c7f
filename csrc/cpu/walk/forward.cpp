// A call of the tiled engine: its weights are packed for it.
#include "cpu/walk/forward_walk.h"
#include "cpu/walk/tiled.h"

namespace fastlstm {

bool is_plain_step(const Layer& layer) {
  return layer.steps.expect_int() == 1 && !layer.packed() && !layer.lengths && !layer.reset &&
         !layer.h_mask && !layer.zones_out();
}

template <typename T, typename W>
ForwardResult tiled_forward(const Layer& layer, bool save_cells, bool save_gates) {
  // A step that trains multiplies in W, if that has fewer bits.
  const bool in_full = std::is_same_v<T, W> || (!save_cells && !save_gates);
  if constexpr (!kWidens<T, W>)
    if (is_plain_step(layer) && in_full) return one_step_forward<T>(layer, save_cells, save_gates);
  const Rows rows(layer);
  const ThreadGrid grid = thread_grid<T, W>(rows, layer.sizes());
  const ForwardTensors<T> to(layer, rows, save_cells, save_gates);
  std::vector<PackedDirection<W>> weights;
  for (int64_t d = 0; d < layer.num_directions(); ++d)
    weights.push_back(pack_direction<T, W>(layer, d, grid.unit_groups));
  walk_forward<T, W>(layer, rows, grid, to, weights);
  return {to.output, to.h_n, to.c_n.to(layer.c_0.scalar_type()), to.cells, to.gates};
}

#define FASTLSTM_INSTANTIATE(T, W)                                      \
  template ForwardResult tiled_forward<T, W>(const Layer&, bool, bool); \
  template FASTLSTM_WALK_FORWARD(T, W);
FASTLSTM_FOR_EACH_PRODUCT(FASTLSTM_INSTANTIATE)
#undef FASTLSTM_INSTANTIATE
template FASTLSTM_WALK_FORWARD(float, int8);

}  // namespace fastlstm
