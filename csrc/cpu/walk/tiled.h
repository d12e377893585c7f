// The tiled engine: the whole walk of a layer on the CPU, its weights packed into panels, the cell
// equations applied while a tile's sums are in the L1 cache. Every shape and option; dtypes that
// have a product (targets/kernels.h).
#pragma once
#include "core/layer.h"
#include "cpu/plan.h"

namespace fastlstm {

Precision precision();  // as requested
// A forward with this layer, for the planner.
CpuTask task_of(const Layer& layer);
inline CpuTask task_of(at::ScalarType dtype, const Sizes& s) {
  return {dtype_of(dtype), s.directions, s.steps,       s.batch,
          s.flat_rows,     s.input_size, s.hidden_size, s.output_size};
}

// Runs a plan, by either engine; the results have the dtypes of the layer.
ForwardResult forward_as_planned(const Layer& layer, const CpuPlan& plan, bool save_cells,
                                 bool save_gates);

// T: the dtype that a layer is computed in, which is that of its tensors.
template <typename T>
ForwardResult tiled_forward(const Layer& layer, const CpuPlan& plan, bool save_cells,
                            bool save_gates);
template <typename T>
BackwardResult tiled_backward(const Layer& layer, const CpuPlan& plan, const BackwardArguments& in);

}  // namespace fastlstm
