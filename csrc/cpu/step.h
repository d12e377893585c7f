// One step of the stepwise engine on the CPU: all rows, in parallel.
#pragma once
#include "cpu/half.h"
#include "equations/layer_norm_step.h"

namespace fastlstm {

struct CpuSteps {
  // Of StepForward, StepBackward, NormForward and NormBackward.
  static void run(const auto& step);
};

}  // namespace fastlstm
