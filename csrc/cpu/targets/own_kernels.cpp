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
    if (__builtin_cpu_supports("avx512vnni"))
      table.products[Format::int8] = &avx512_vnni::int8_weights;
    if (__builtin_cpu_supports("avx512bf16")) {
      table.products[Format::bfloat16] = &avx512_bf16::product;
      table.BFloat16.cell = &avx512_bf16::cell;
    }
    return table;
  }
  if (std::strcmp(capability, "AVX2") == 0) {
    KernelTable table = avx2::table;
    if (__builtin_cpu_supports("avxvnni")) table.products[Format::int8] = &avx_vnni::int8_weights;
    return table;
  }
  return baseline::table;
}

KernelTable own_kernels(const char* capability) {
  KernelTable table = kernels_of(capability);
  if (__builtin_cpu_is("intel"))
    table.rows_beside_h = 48;
  else if (std::strncmp(capability, "AVX512", 6) == 0)
    table.rows_beside_h = 12;  // measured on AMD Zen 4
  return table;
}

static Product on_tiles(const Product& original, const Product& split) {
  Product product = original;
  product.rows = split.rows;
  product.end_thread = split.end_thread, product.instructions = split.instructions;
  return product;
}

Product bfloat16_on_tiles(const TileProducts& tiles) {
  Product product = on_tiles(avx512_bf16::product, tiles.bfloat16x2);
  product.padding = tiles.bfloat16x2.padding;
  product.pack = tiles.pack_bfloat16, product.multiply = tiles.multiply_bfloat16;
  product.panel_rows = 2 * product.rows, product.bytes_ahead = 256 << 10;
  product.panels = product.panels_of_one_row = 1;
  return product;
}

Product int8_on_tiles(const TileProducts& tiles) {
  Product product = on_tiles(avx512_vnni::int8_weights, tiles.bfloat16x2);
  product.multiply = tiles.multiply_int8;
  product.of_few_rows = &avx512_vnni::int8_weights, product.many_rows = 8;
  return product;
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

KernelTable own_kernels(const char*) {
  KernelTable table = neon::table;
  if (has_dot_product()) table.products[Format::int8] = &neon_dotprod::int8_weights;
  if (has_bfloat16()) {
    table.products[Format::bfloat16] = &neon_bf16::product;
    table.BFloat16.cell = &neon_bf16::cell;
  }
  return table;
}

#else
KernelTable own_kernels(const char*) { return baseline::table; }
#endif

}  // namespace fastlstm
