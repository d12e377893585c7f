// What Python asks about the build and the planners. op/module.cpp describes these functions.
#pragma once
#include <torch/csrc/utils/pybind.h>

#include <algorithm>
#include <string>

#include "core/torch_versions.h"
#include "cpu/kernels.h"
#include "cpu/plan.h"
#include "cuda/plan.h"

namespace fastlstm::planners {

namespace py = pybind11;
using namespace py::literals;

constexpr const char* kDtypeNames[] = {"float64", "float32", "bfloat16", "float16"};

inline py::dict build_info() {
  const CpuMachine machine = cpu_machine();
  py::dict gemms;  // by format: (instruction set, rows and columns of a register tile)
  for (const GemmKernels* const gemm : machine.gemms.by_format)
    if (gemm && gemm->multiply)
      gemms[kFormatNames[static_cast<int>(gemm->format)]] =
          py::make_tuple(gemm->instruction_set, gemm->tile_rows, gemm->max_width());
  return py::dict("cpu_capability"_a = kernel_table().target,
                  "multiplies_bfloat16"_a = machine.training_gemm(Dtype::kBFloat16) != nullptr,
                  "l2_cache_bytes"_a = machine.l2_cache_bytes, "products"_a = gemms);
}

inline Dtype dtype_named(const std::string& name) {
  const auto* const found = std::ranges::find(kDtypeNames, name);
  if (found != std::end(kDtypeNames)) return static_cast<Dtype>(found - kDtypeNames);
  throw std::invalid_argument(
      R"(dtype: expected "float32", "float64", "bfloat16" or "float16", got ")" + name + '"');
}

inline py::dict engines() {
  return py::dict("stepwise"_a = py::make_tuple("cpu", "cuda"), "tiled"_a = py::make_tuple("cpu"),
                  "persistent"_a = py::make_tuple("cuda"));
}

// The layer has no options (LayerCall::options_in_use). For `training` backward must fit as well.
inline bool persistent_engine_fits(int64_t hidden_size, int64_t batch, int64_t steps,
                                   int directions, const std::string& dtype, bool training,
                                   int sm_count, int capability) {
  CudaTask task{hidden_size, batch, steps, directions, dtype_named(dtype), matmul_allows_tf32()};
  const CudaDevice device = CudaDevice::of(sm_count, capability);
  const bool forward = best_tiling(task, device).has_value();
  task.backward = training;
  return forward && best_tiling(task, device);
}

inline py::dict plan_cpu(const std::string& dtype, int64_t input_size, int64_t hidden_size,
                         int64_t batch, int64_t steps, int64_t directions, bool training,
                         bool backward, int64_t threads, int64_t l2_cache_bytes) {
  const auto smallest = std::min({input_size, hidden_size, batch, steps, threads, l2_cache_bytes});
  if (smallest < 1 || directions < 1 || directions > 2)
    throw std::invalid_argument("plan_cpu: expected directions 1 or 2, and no number below 1");
  CpuTask task{dtype_named(dtype), directions, steps, batch, steps * batch, input_size};
  task.hidden_size = task.output_size = hidden_size;
  task.saves_for_backward = training, task.backward = backward;
  CpuMachine machine = cpu_machine();
  machine.threads = threads, machine.l2_cache_bytes = l2_cache_bytes;
  const CpuPlan plan = make_plan(task, machine);
  constexpr const char* kWeightForms[] = {"panels", "panel on demand", "in place"};
  const char* const dtype_name = kDtypeNames[static_cast<int>(plan.dtype)];
  const GemmKernels* const gemm = plan.gemm;  // nullptr: the stepwise engine computes
  return py::dict("engine"_a = gemm ? "tiled" : "stepwise", "dtype"_a = dtype_name,
                  "product"_a = gemm ? kFormatNames[static_cast<int>(gemm->format)] : dtype_name,
                  "weights"_a = kWeightForms[static_cast<int>(plan.w_hh)],
                  "unit_groups"_a = plan.grid.unit_groups, "row_groups"_a = plan.grid.row_groups,
                  "directions"_a = plan.grid.directions, "steps_ahead"_a = plan.steps_ahead,
                  "chunk_steps"_a = plan.chunk_steps);
}

}  // namespace fastlstm::planners
