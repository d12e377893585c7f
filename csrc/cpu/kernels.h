// The kernel table of this machine, and the description of this machine for the planner.
#pragma once
#include "cpu/plan.h"
#include "cpu/targets/kernels.h"

namespace fastlstm {

// The kernels for this machine. ATEN_CPU_CAPABILITY can limit the instruction set, as it does for
// PyTorch's kernels.
const KernelTable& kernel_table();

// This machine as the planner sees it, with the number of threads that a call may use now.
CpuMachine cpu_machine();

// The kernels of a dtype.
template <typename T>
const Kernels<T>& kernels();
#define FASTLSTM_KERNELS(T, A, name)   \
  template <>                          \
  inline const Kernels<T>& kernels() { \
    return kernel_table().name;        \
  }
FASTLSTM_FOR_EACH_DTYPE(FASTLSTM_KERNELS)
#undef FASTLSTM_KERNELS

}  // namespace fastlstm
