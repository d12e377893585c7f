// The tiled engine: the whole walk of a layer on the CPU, its weights packed into panels, the cell
// equations applied while a tile's sums are in the L1 cache. Every shape and option; dtypes that
// have a product (targets/kernels.h).
#pragma once
#include "core/layer_call.h"
#include "cpu/plan.h"

namespace fastlstm {

// T: the dtype that a layer is computed in, which is that of its tensors.
template <typename T>
ForwardResult tiled_forward(const LayerCall& layer, const CpuPlan& plan, bool save_cells,
                            bool save_gates);
template <typename T>
BackwardResult tiled_backward(const LayerCall& layer, const CpuPlan& plan,
                              const BackwardArguments& in);

}  // namespace fastlstm
