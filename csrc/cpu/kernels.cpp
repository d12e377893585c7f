#include "cpu/targets/kernels.h"

#include <ATen/Parallel.h>
#include <ATen/Version.h>

#include <cstdlib>
#include <string>

#include "cpu/products/brgemm.h"

namespace fastlstm {

// Whether oneDNN multiplies bfloat16 and int8 where it can: by default if that uses AMX. The
// environment variable lets tests run either code on any processor with AVX512_BF16.
static bool wants_onednn() {
  const char* const variable = std::getenv("FASTLSTM_ONEDNN");
  const std::string value = variable ? variable : "";
  TORCH_CHECK(value.empty() || value == "0" || value == "1",
              "FASTLSTM_ONEDNN: expected 0 or 1, got ", value);
  return value.empty() ? has_amx() : value == "1";
}

static KernelTable choose() {
  KernelTable table = own_kernels(at::get_cpu_capability().c_str());
  if (!wants_onednn() || !table.BFloat16.product) return table;
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
  return {1,
          l2_cache_bytes(),
          {describe<double>(), describe<float>(), of_bfloat16, of_float16, describe<int8>()},
          table.tuning};
}

CpuMachine cpu_machine() {
  static const CpuMachine known = describe_machine();
  CpuMachine machine = known;
  machine.threads = at::in_parallel_region() ? 1 : at::get_num_threads();
  return machine;
}

}  // namespace fastlstm
