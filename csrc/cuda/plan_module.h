// The planner for Python: which engine a layer would get on a CUDA device that need not be here.
#pragma once
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

#include "plan.h"

namespace fastlstm {

inline pybind11::dict plan_cuda(int64_t hidden_size, int64_t batch, int64_t steps, int directions,
                                const std::string& dtype, bool allow_tf32, bool backward,
                                int sm_count, int capability) {
  Task task{hidden_size,
            batch,
            steps,
            directions,
            Dtype::kFloat32,
            allow_tf32,
            /*only_stepwise=*/false,
            backward};
  if (dtype == "float64") {
    task.dtype = Dtype::kFloat64;
  } else if (dtype == "bfloat16") {
    task.dtype = Dtype::kBFloat16;
  } else if (dtype == "float16") {
    task.dtype = Dtype::kFloat16;
  } else if (dtype != "float32") {
    throw std::invalid_argument(
        "dtype: expected \"float32\", \"float64\", \"bfloat16\" or \"float16\", got \"" + dtype +
        "\"");
  }
  if (hidden_size < 1 || batch < 1 || steps < 1 || sm_count < 1 || directions < 1 || directions > 2)
    throw std::invalid_argument(
        "expected hidden_size, batch, steps and sm_count of at least 1 and 1 or 2 directions");
  const CudaDevice device = CudaDevice::of(sm_count, capability);
  const Plan chosen = plan(task, device);
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
