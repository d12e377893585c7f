// The planner for Python: which engine a layer would get on a CUDA device that need not be present,
// and the constants that predict its time.
#pragma once
#include <pybind11/pybind11.h>

#include <algorithm>
#include <stdexcept>
#include <string>

#include "plan.h"
#include "request.h"

namespace fastlstm {

// By Dtype; the last is of weights alone.
inline constexpr const char* kDtypeNames[] = {"float64", "float32", "bfloat16", "float16", "int8"};

inline Dtype dtype_named(const std::string& name) {
  for (int k = 0; k < 4; ++k)
    if (name == kDtypeNames[k]) return static_cast<Dtype>(k);
  throw std::invalid_argument(
      "dtype: expected \"float32\", \"float64\", \"bfloat16\" or \"float16\", got \"" + name +
      "\"");
}

// `constants`: other values for some of kPlanConstants, by name.
inline CudaDevice device_with(int sm_count, int capability, const pybind11::dict& constants) {
  CudaDevice device = CudaDevice::of(sm_count, capability);
  for (const auto& [key, value] : constants) {
    const auto name = key.cast<std::string>();
    const auto found = std::find_if(std::begin(kPlanConstants), std::end(kPlanConstants),
                                    [&](const PlanConstant& c) { return name == c.name; });
    if (found == std::end(kPlanConstants))
      throw std::invalid_argument("constants: the planner has none that is called \"" + name +
                                  "\"");
    device.*(found->value) = value.cast<double>();
  }
  return device;
}

inline pybind11::dict cuda_constants(int sm_count, int capability) {
  const CudaDevice device = CudaDevice::of(sm_count, capability);
  pybind11::dict constants;
  for (const PlanConstant& constant : kPlanConstants)
    constants[constant.name] = device.*(constant.value);
  return constants;
}

// Takes the fields of Task and more one by one, as Python passes them.
inline pybind11::dict plan_cuda(int64_t hidden_size, int64_t batch, int64_t steps, int directions,
                                const std::string& dtype, bool allow_tf32, bool backward,
                                int sm_count, int capability, const std::string& engine,
                                const pybind11::dict& constants) {
  if (hidden_size < 1 || batch < 1 || steps < 1 || sm_count < 1 || directions < 1 || directions > 2)
    throw std::invalid_argument(
        "expected hidden_size, batch, steps and sm_count of at least 1 and 1 or 2 directions");
  const auto request = parse_engine(engine);
  if (!request)
    throw std::invalid_argument(
        "engine: expected \"auto\", \"stepwise\", \"persistent\" or "
        "\"persistent:UNITSxROW_TILExROW_GROUPS\", got \"" +
        engine + "\"");
  const Task task{hidden_size,
                  batch,
                  steps,
                  directions,
                  dtype_named(dtype),
                  allow_tf32,
                  /*only_stepwise=*/request->engine == EngineRequest::kStepwise,
                  backward};
  const CudaDevice device = device_with(sm_count, capability, constants);
  const Plan chosen = request->engine == EngineRequest::kPersistent
                          ? plan_persistent(task, device, request->division)
                          : plan(task, device);
  pybind11::dict result;
  result["engine"] = chosen.engine();
  result["step_us"] = chosen.step_us;  // predicted, not measured
  result["stepwise_step_us"] = chosen.stepwise_step_us;
  result["shared_bytes"] = chosen.shared_bytes;
  result["shared_bytes_available"] = device.shared_bytes;
  result["units"] = chosen.tiling.units;
  result["row_tile"] = chosen.tiling.row_tile;
  result["unit_blocks"] = chosen.tiling.unit_blocks;
  result["row_groups"] = chosen.tiling.row_groups;
  result["group_rows"] = chosen.tiling.group_rows;
  result["directions"] = chosen.tiling.directions;
  result["blocks"] = chosen.persistent ? chosen.tiling.blocks() : 0;
  return result;
}

}  // namespace fastlstm
