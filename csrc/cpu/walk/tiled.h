// The tiled engine: computes a layer on the CPU with our own GEMM kernels. The cell equations read
// the sums of a product while they are in the L1 cache. plan.cpp leaves layer normalization,
// recurrent dropout and layers with a size of 0 to the stepwise engine.
#pragma once
#include "core/layer_call.h"
#include "cpu/plan.h"

namespace fastlstm {

// The tensors of the layer have plan.dtype.
ForwardResult tiled_forward(const LayerCall& layer, const CpuPlan& plan,
                            const ForwardOptions& options);
BackwardResult tiled_backward(const LayerCall& layer, const CpuPlan& plan,
                              const BackwardArguments& in);

}  // namespace fastlstm
