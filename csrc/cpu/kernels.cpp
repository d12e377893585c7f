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
static const Product<bfloat16x3>* float32_by_bfloat16() {
#if defined(__x86_64__)
  if (wants("FASTLSTM_AMX"))
    return has_amx() ? &amx::float32_by_bfloat16 : &amx_emulated::float32_by_bfloat16;
#endif
  return nullptr;
}

static KernelTable choose() {
  const std::string capability = at::get_cpu_capability();
  KernelTable table = own_kernels(capability.c_str());
  if (capability.starts_with("AVX512")) table.float32_by_bfloat16 = float32_by_bfloat16();
  if (!wants("FASTLSTM_ONEDNN") || !table.BFloat16.product) return table;
  if (const auto* product = brgemm_bfloat16())
    table.BFloat16.product = table.weights.of_bfloat16 = product;
  if (table.weights.of_int8->excess != kUnsigned) return table;  // a machine that hides VNNI
  if (const auto* product = brgemm_int8()) table.weights.of_int8 = product;
  return table;
}

const KernelTable& kernel_table() {
  static const KernelTable chosen = choose();
  return chosen;
}

template <typename T>
static CpuDtype describe() {
  const Product<T>& product = product_of<T>();
  return {true, true, product.lanes, product.rows, product.panel_rows, product.bytes_ahead};
}

static CpuMachine describe_machine() {
  const KernelTable& table = kernel_table();
  CpuDtype of_bfloat16 = describe<bfloat16>();
  of_bfloat16.stepwise = table.BFloat16.row.forward != nullptr;
  of_bfloat16.multiplies = table.BFloat16.product != nullptr;
  CpuDtype of_float16 = of_bfloat16;
  of_float16.multiplies = false;  // no processor multiplies it
  CpuDtype of_bfloat16x3;
  of_bfloat16x3.multiplies = table.float32_by_bfloat16 != nullptr;
  if (of_bfloat16x3.multiplies) of_bfloat16x3 = describe<bfloat16x3>();
  return {1,
          l2_cache_bytes(),
          {describe<double>(), describe<float>(), of_bfloat16, of_float16, describe<int8>(),
           of_bfloat16x3},
          table.tuning};
}

CpuMachine cpu_machine() {
  static const CpuMachine known = describe_machine();
  CpuMachine machine = known;
  machine.threads = at::in_parallel_region() ? 1 : at::get_num_threads();
  return machine;
}

}  // namespace fastlstm
