// Chooses the kernels for this processor. This file does not know torch, so the kernels can be
// tested without it.
#include <cstring>

#include "cpu/targets/kernels.h"

#if defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#elif defined(__aarch64__)
#include <sys/auxv.h>
#endif

namespace fastlstm {

#if defined(__x86_64__)
static KernelTable kernels_of(const char* capability) {
  if (std::strncmp(capability, "AVX512", 6) == 0) {
    KernelTable table = avx512::table;
    if (__builtin_cpu_supports("avx512vnni")) table.gemms[Format::int8] = &avx512_vnni::int8_gemm;
    if (__builtin_cpu_supports("avx512bf16")) {
      table.gemms[Format::bfloat16] = &avx512_bf16::bfloat16_gemm;
      table.BFloat16.cell = &avx512_bf16::bfloat16_cell;
    }
    return table;
  }
  if (std::strcmp(capability, "AVX2") == 0) {
    KernelTable table = avx2::table;
    if (__builtin_cpu_supports("avxvnni")) table.gemms[Format::int8] = &avx_vnni::int8_gemm;
    return table;
  }
  return baseline::table;
}

KernelTable kernels_for_machine(const char* capability) {
  KernelTable table = kernels_of(capability);
  if (__builtin_cpu_is("intel"))
    table.min_rows_to_fuse_input = 48;
  else if (std::strncmp(capability, "AVX512", 6) == 0)
    table.min_rows_to_fuse_input = 12;  // measured on AMD Zen 4
  return table;
}

static GemmKernels on_tiles(const GemmKernels& original, const GemmKernels& split) {
  GemmKernels gemm = original;
  gemm.tile_rows = split.tile_rows;
  gemm.end_thread = split.end_thread, gemm.instruction_set = split.instruction_set;
  return gemm;
}

GemmKernels amx_bfloat16_gemm(const AmxGemms& amx) {
  GemmKernels gemm = on_tiles(avx512_bf16::bfloat16_gemm, amx.bfloat16x2);
  gemm.k_multiple = amx.bfloat16x2.k_multiple;
  gemm.pack = amx.pack_bfloat16, gemm.multiply = amx.multiply_bfloat16;
  gemm.min_rows_per_panel_load = 2 * gemm.tile_rows, gemm.bytes_ahead = 256 << 10;
  gemm.panels_at_once = gemm.panels_at_once_of_one_row = 1;
  return gemm;
}

GemmKernels amx_int8_gemm(const AmxGemms& amx) {
  GemmKernels gemm = on_tiles(avx512_vnni::int8_gemm, amx.bfloat16x2);
  gemm.multiply = amx.multiply_int8;
  gemm.few_rows_gemm = &avx512_vnni::int8_gemm, gemm.few_rows_limit = 8;
  return gemm;
}

#elif defined(__aarch64__)
#if defined(__APPLE__)
static bool has(const char* feature) {
  int value = 0;
  size_t size = sizeof value;
  return sysctlbyname(feature, &value, &size, nullptr, 0) == 0 && value != 0;
}
static bool has_dot_product() { return has("hw.optional.arm.FEAT_DotProd"); }
static bool has_bfloat16() { return has("hw.optional.arm.FEAT_BF16"); }
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
    table.BFloat16.cell = &neon_bf16::bfloat16_cell;
  }
  return table;
}

#else
KernelTable kernels_for_machine(const char*) { return baseline::table; }
#endif

}  // namespace fastlstm
