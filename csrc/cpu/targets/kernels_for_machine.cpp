// Chooses the kernels for this processor, without torch, so that tests can run without it.
#include <cstring>

#include "cpu/targets/kernels.h"

#if defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#elif defined(__aarch64__)
#include <sys/auxv.h>
#endif

namespace fastlstm {

#if defined(__x86_64__)
KernelTable kernels_for_machine(const char* capability) {
  const bool is_avx512 = std::strncmp(capability, "AVX512", 6) == 0;
  const bool is_avx2 = std::strcmp(capability, "AVX2") == 0;
  KernelTable table = is_avx512 ? avx512::table : is_avx2 ? avx2::table : baseline::table;
  if (is_avx512 && __builtin_cpu_supports("avx512vnni"))
    table.gemms[Format::int8] = &avx512_vnni::int8_gemm;
  if (is_avx2 && __builtin_cpu_supports("avxvnni"))
    table.gemms[Format::int8] = &avx_vnni::int8_gemm;
  if (is_avx512 && __builtin_cpu_supports("avx512bf16")) {
    table.gemms[Format::bfloat16] = &avx512_bf16::bfloat16_gemm;
    table.Kernels<bfloat16>::cell_kernels = &avx512_bf16::bfloat16_cell;
  }
  if (__builtin_cpu_is("intel"))
    table.min_rows_to_fuse_input = 48;  // measured on a Xeon with AMX (family 6, model 207)
  else if (is_avx512)
    table.min_rows_to_fuse_input = 12;  // measured on an AMD EPYC (Zen 4)
  return table;
}

#elif defined(__aarch64__)
#if defined(__APPLE__)
static bool has_feature(const char* feature) {
  int value = 0;
  size_t size = sizeof value;
  return sysctlbyname(feature, &value, &size, nullptr, 0) == 0 && value != 0;
}
static bool has_dot_product() { return has_feature("hw.optional.arm.FEAT_DotProd"); }
static bool has_bfloat16() { return has_feature("hw.optional.arm.FEAT_BF16"); }
#else
// Bits 20 and 14 are Linux's HWCAP_ASIMDDP and HWCAP2_BF16, which older headers do not define.
static bool has_dot_product() { return getauxval(AT_HWCAP) >> 20 & 1; }
static bool has_bfloat16() { return getauxval(AT_HWCAP2) >> 14 & 1; }
#endif

KernelTable kernels_for_machine(const char*) {
  KernelTable table = neon::table;
  if (has_dot_product()) table.gemms[Format::int8] = &neon_dotprod::int8_gemm;
  if (has_bfloat16()) {
    table.gemms[Format::bfloat16] = &neon_bf16::bfloat16_gemm;
    table.Kernels<bfloat16>::cell_kernels = &neon_bf16::bfloat16_cell;
  }
  return table;
}

#else
KernelTable kernels_for_machine(const char*) { return baseline::table; }
#endif

}  // namespace fastlstm
