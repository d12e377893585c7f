#include "cpu/targets/kernels.h"

#include <ATen/Parallel.h>
#include <ATen/Version.h>

#include <cstdlib>
#include <string>

#include "cpu/products/brgemm.h"

namespace fastlstm {

// An environment variable that lets tests run either code on any processor; by default what uses
// AMX where there is AMX.
static bool wants(const char* name) {
  const char* const variable = std::getenv(name);
  const std::string value = variable ? variable : "";
  TORCH_CHECK(value.empty() || value == "0" || value == "1", name, ": expected 0 or 1, got ",
              value);
  return value.empty() ? has_amx() : value == "1";
}

// float32 by products of bfloat16, emulated where there is no AMX.
static void add_split_float32(Products& products) {
#if defined(__x86_64__)
  if (!wants("FASTLSTM_AMX")) return;
  products[Format::bfloat16x3] = has_amx() ? &amx::bfloat16x3 : &amx_emulated::bfloat16x3;
  products[Format::bfloat16x2] = has_amx() ? &amx::bfloat16x2 : &amx_emulated::bfloat16x2;
#endif
}

static KernelTable choose() {
  const std::string capability = at::get_cpu_capability();
  KernelTable table = own_kernels(capability.c_str());
  Products& products = table.products;
  if (capability.starts_with("AVX512")) add_split_float32(products);
  if (!wants("FASTLSTM_ONEDNN") || !products[Format::bfloat16]->trains()) return table;
  const Product &pairs = *products[Format::bfloat16], &fours = *products[Format::int8];
  if (const auto* product = brgemm_bfloat16(pairs)) products[Format::bfloat16] = product;
  if (fours.excess != kUnsigned) return table;  // a machine that hides VNNI
  if (const auto* product = brgemm_int8(fours)) products[Format::int8] = product;
  return table;
}

const KernelTable& kernel_table() {
  static const KernelTable chosen = choose();
  return chosen;
}

CpuMachine cpu_machine() {
  const KernelTable& table = kernel_table();
  const RowKernel<StepForward<bfloat16, float>>& row_of_16_bits = table.BFloat16.row;
  return {at::in_parallel_region() ? 1 : at::get_num_threads(), l2_cache_bytes(), table.products,
          row_of_16_bits.run != nullptr, table.tuning};
}

}  // namespace fastlstm
