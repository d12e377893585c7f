// Which engine serves a call on a GPU: what was asked for, what the device can do, what the planner
// says.
#pragma once
#include <ATen/Context.h>

#include <cstdio>
#include <string>

#include "../layer.h"
#include "device_sequence.h"
#include "plan.h"

namespace fastlstm {

inline CudaDevice cuda_device(const Tensor& tensor) {
  const int index = tensor.get_device();
  const auto attribute = [&](cudaDeviceAttr name) {
    int value = 0;
    check_cuda(cudaDeviceGetAttribute(&value, name, index), "cudaDeviceGetAttribute");
    return value;
  };
  const int capability = 10 * attribute(cudaDevAttrComputeCapabilityMajor) +
                         attribute(cudaDevAttrComputeCapabilityMinor);
  CudaDevice device = CudaDevice::of(attribute(cudaDevAttrMultiProcessorCount), capability);
  device.shared_bytes = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  if (!attribute(cudaDevAttrCooperativeLaunch)) device.sm_count = 0;  // nothing persistent fits
  return device;
}

inline Dtype dtype_of(at::ScalarType dtype) {
  return dtype == at::kDouble     ? Dtype::kFloat64
         : dtype == at::kBFloat16 ? Dtype::kBFloat16
         : dtype == at::kHalf     ? Dtype::kFloat16
                                  : Dtype::kFloat32;
}

struct Choice {
  Task task;
  Plan plan;
  bool forced;  // the persistent engine was asked for by name
};

// engine: "auto", "stepwise", "persistent", or "persistent:UNITSxROW_TILExROW_GROUPS" for a
// division of the work other than the planner's (plan.h).
inline Choice choose(c10::string_view engine, const Layer& layer, bool backward) {
  const std::string name(engine.data(), engine.size());
  Wanted wanted;
  int parsed = 0;
  const bool divided = std::sscanf(name.c_str(), "persistent:%dx%dx%d%n", &wanted.units,
                                   &wanted.row_tile, &wanted.row_groups, &parsed) == 3 &&
                       parsed == static_cast<int>(name.size());
  TORCH_CHECK(name == "auto" || name == "stepwise" || name == "persistent" || divided,
              "lstm: expected engine to be \"auto\", \"stepwise\", \"persistent\" or "
              "\"persistent:UNITSxROW_TILExROW_GROUPS\" on CUDA, got \"",
              name, "\"");

  const Task task{layer.hidden_size.expect_int(),
                  layer.batch.expect_int(),
                  layer.steps.expect_int(),
                  static_cast<int>(layer.num_directions()),
                  dtype_of(layer.input.scalar_type()),
                  at::globalContext().allowTF32CuDNN(at::Float32Op::RNN),
                  layer.projects() || layer.normalizes(),
                  backward};
  if (name == "stepwise") return {task, {}, false};
  const CudaDevice device = cuda_device(layer.input);
  if (name == "auto") return {task, plan(task, device), false};
  const Plan forced = plan_persistent(task, device, wanted);
  TORCH_CHECK(
      forced.persistent, "lstm: the engine \"", name,
      "\" takes float32, bfloat16 and float16 without proj_size and layer normalisation, a batch "
      "that is not empty, and a W_hh that fits into the shared memory of the GPU (sm_80 or newer), "
      "got ",
      layer.input.scalar_type(), layer.options().empty() ? "" : " with ", layer.options(),
      ", batch ", task.batch, ", hidden_size ", task.hidden_size, " on sm_", device.capability,
      " with ", device.sm_count, " SMs");
  return {task, forced, true};
}

}  // namespace fastlstm
