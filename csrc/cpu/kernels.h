// The kernel table of this machine, and this machine as the planner sees it.
#pragma once
#include "cpu/plan.h"
#include "cpu/targets/kernels.h"

namespace fastlstm {

// Returns the kernels for this machine. ATEN_CPU_CAPABILITY can limit the instruction set.
const KernelTable& kernel_table();

// Describes this machine to the planner, with the number of threads that a call may use now.
CpuMachine cpu_machine();

template <typename T>
const Kernels<T>& kernels() {
  return kernel_table();
}

}  // namespace fastlstm
