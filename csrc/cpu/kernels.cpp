// Chooses the kernels for this machine, once, and describes the machine to the planner.
#include "cpu/kernels.h"

#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <ATen/cpu/Utils.h>
#include <unistd.h>

#include <cstdlib>
#include <string>

namespace fastlstm {

#if defined(__x86_64__)
// Returns whether to use AMX. init_amx asks the system to let this process use it.
static bool use_amx() {
  const char* const variable = std::getenv("FASTLSTM_AMX");
  const std::string value = variable && *variable ? variable : "1";
  TORCH_CHECK(value == "0" || value == "1", "FASTLSTM_AMX: expected 0 or 1, got \"", value, "\"");
  return value == "1" && at::cpu::init_amx();
}
#endif

static KernelTable choose() {
  const std::string capability = at::get_cpu_capability();
  KernelTable table = kernels_for_machine(capability.c_str());
#if defined(__x86_64__)
  if (!capability.starts_with("AVX512") || !use_amx()) return table;
  static const AmxGemms amx = amx::amx_gemms();
  GemmTable& gemms = table.gemms;
  gemms[Format::bfloat16x2] = &amx.bfloat16x2;
  if (gemms[Format::bfloat16] == &avx512_bf16::bfloat16_gemm &&
      gemms[Format::int8] == &avx512_vnni::int8_gemm)  // the AMX kernels call these
    gemms[Format::bfloat16] = &amx.bfloat16, gemms[Format::int8] = &amx.int8;
#endif
  return table;
}

const KernelTable& kernel_table() {
  static const KernelTable chosen = choose();
  return chosen;
}

static CpuMachine machine_without_threads() {
  const RowKernel<ForwardStep<bfloat16, float>>& bfloat16_kernel = kernels<bfloat16>().row_kernels;
  CpuMachine machine{.gemms = kernel_table().gemms};
  machine.has_16_bit_row_kernels = bfloat16_kernel.run != nullptr;
  machine.min_rows_to_fuse_input = kernel_table().min_rows_to_fuse_input;
#ifdef _SC_LEVEL3_CACHE_SIZE
  const int64_t l2 = sysconf(_SC_LEVEL2_CACHE_SIZE), l3 = sysconf(_SC_LEVEL3_CACHE_SIZE);
  if (l2 > 0) machine.l2_cache_bytes = l2;
  if (l3 > 0) machine.l3_cache_bytes = l3;
#endif
  return machine;
}

CpuMachine cpu_machine() {
  static const CpuMachine known = machine_without_threads();
  CpuMachine machine = known;
  machine.threads = at::in_parallel_region() ? 1 : at::get_num_threads();
  return machine;
}

}  // namespace fastlstm
