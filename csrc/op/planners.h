// What Python asks the planners: how a call would run, and what was built.
#pragma once
#include <torch/csrc/utils/pybind.h>

#include <algorithm>
#include <string>

#include "cpu/plan.h"
#include "cpu/targets/kernels.h"
#include "cuda/plan.h"
#include "cuda/request.h"

namespace fastlstm::planners {

namespace py = pybind11;
using namespace py::literals;

// By Dtype.
constexpr const char* kDtypeNames[] = {"float64", "float32", "bfloat16", "float16"};

inline py::dict build_info() {
  const CpuMachine machine = cpu_machine();
  py::dict products;  // their instructions, and the rows and columns of a register tile
  for (int k = 0; k < kFormats; ++k)
    if (const Product* const product = machine.products.of[k])
      products[kFormatNames[k]] =
          py::make_tuple(product->instructions, product->rows, product->width());
  return py::dict("cpu_capability"_a = kernel_table().target,
                  "multiplies_bfloat16"_a = machine.own_product(Dtype::kBFloat16) != nullptr,
                  "l2_cache_bytes"_a = l2_cache_bytes(), "products"_a = products);
}

inline Dtype dtype_named(const std::string& name) {
  for (int k = 0; k < 4; ++k)
    if (name == kDtypeNames[k]) return static_cast<Dtype>(k);
  throw std::invalid_argument(
      R"(dtype: expected "float32", "float64", "bfloat16" or "float16", got ")" + name + '"');
}

// `constants`: other values for some of kPlanConstants, by name.
inline CudaDevice device_with(int sm_count, int capability, double clock_ghz,
                              const py::dict& constants) {
  CudaDevice device = CudaDevice::of(sm_count, capability, clock_ghz);
  for (const auto& [key, value] : constants) {
    const auto name = key.cast<std::string>();
    const auto found = std::find_if(std::begin(kPlanConstants), std::end(kPlanConstants),
                                    [&](const PlanConstant& c) { return name == c.name; });
    if (found == std::end(kPlanConstants))
      throw std::invalid_argument(R"(constants: the planner has none called ")" + name + '"');
    device.*(found->value) = value.cast<double>();
  }
  return device;
}

inline py::dict cuda_constants(int sm_count, int capability) {
  const CudaDevice device = CudaDevice::of(sm_count, capability);
  py::dict constants;
  for (const PlanConstant& constant : kPlanConstants)
    constants[constant.name] = device.*(constant.value);
  return constants;
}

// Takes the fields of Task and more, which Python passes by name.
inline py::dict plan_cuda(int64_t hidden_size, int64_t batch, int64_t steps, int directions,
                          const std::string& dtype, bool allow_tf32, bool backward, int sm_count,
                          int capability, double clock_ghz, int layers, const std::string& engine,
                          const py::dict& constants) {
  const bool has_sizes = std::min({hidden_size, batch, steps, int64_t{layers}}) >= 1;
  if (!has_sizes || sm_count < 0 || directions < 1 || directions > 2)
    throw std::invalid_argument(
        "expected hidden_size, batch, steps and layers of at least 1, sm_count of at least 0 and 1 "
        "or 2 directions");
  const auto request = parse_engine(engine);
  if (!request)
    throw std::invalid_argument(R"(engine: expected "auto", "stepwise", "persistent" or )"
                                R"("persistent:UNITSxROW_TILExROW_GROUPS", got ")" +
                                engine + '"');
  const bool only_stepwise = request->engine == EngineRequest::kStepwise;
  const Task task{hidden_size,        batch,      steps,         directions,
                  dtype_named(dtype), allow_tf32, only_stepwise, backward};
  const CudaDevice device = device_with(sm_count, capability, clock_ghz, constants);
  const Plan chosen = request->engine == EngineRequest::kPersistent
                          ? plan_persistent(task, device, request->division)
                          : plan(task, device);
  const Tiling& tiling = chosen.tiling;  // times are predicted, not measured
  return py::dict("engine"_a = chosen.engine(), "step_us"_a = chosen.step_us,
                  "stepwise_step_us"_a = chosen.stepwise_step_us,
                  "stack_us"_a = predict_stack(task, chosen, layers, device),
                  "cudnn_us"_a = predict_cudnn(task, layers, device), "units"_a = tiling.units,
                  "shared_bytes"_a = tiling.shared_bytes,
                  "shared_bytes_available"_a = device.shared_bytes, "row_tile"_a = tiling.row_tile,
                  "unit_blocks"_a = tiling.unit_blocks, "row_groups"_a = tiling.row_groups,
                  "group_rows"_a = tiling.group_rows, "directions"_a = tiling.directions,
                  "blocks"_a = chosen.persistent ? tiling.blocks() : 0);
}

// A plain layer on this processor, with these threads and this cache; times are predicted.
inline py::dict plan_cpu(const std::string& dtype, int64_t input_size, int64_t hidden_size,
                         int64_t batch, int64_t steps, int64_t directions, bool training,
                         bool backward, int64_t threads, int64_t l2_cache_bytes) {
  const auto least = std::min({input_size, hidden_size, batch, steps, threads, l2_cache_bytes});
  if (least < 1 || directions < 1 || directions > 2)
    throw std::invalid_argument("expected sizes of at least 1 and 1 or 2 directions");
  const CpuTask task{.dtype = dtype_named(dtype),
                     .directions = directions,
                     .steps = steps,
                     .batch = batch,
                     .rows = steps * batch,
                     .input_size = input_size,
                     .hidden_size = hidden_size,
                     .output_size = hidden_size,
                     .saves = training,
                     .backward = backward};
  CpuMachine machine = cpu_machine();
  machine.threads = threads, machine.l2_cache_bytes = l2_cache_bytes;
  const CpuPlan chosen = plan(task, machine);
  const char* const dtype_name = kDtypeNames[static_cast<int>(chosen.dtype)];
  const Product* const product = chosen.product;  // none if ATen multiplies
  return py::dict(
      "engine"_a = chosen.engine == CpuEngine::kTiled ? "tiled" : "stepwise",
      "dtype"_a = dtype_name,
      "product"_a = product ? kFormatNames[static_cast<int>(product->format)] : dtype_name,
      "one_step"_a = chosen.one_step, "unit_groups"_a = chosen.grid.unit_groups,
      "row_groups"_a = chosen.grid.row_groups, "directions"_a = chosen.grid.directions,
      "step_us"_a = chosen.step_us, "steps_ahead"_a = chosen.steps_ahead,
      "chunk_steps"_a = chosen.chunk_steps);
}

}  // namespace fastlstm::planners
