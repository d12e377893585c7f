// Which engine serves a call on a GPU: what was requested, what the device can do, what the planner
// says.
#pragma once
#include <c10/cuda/CUDAFunctions.h>

#include <algorithm>
#include <string>

#include "../core/layer.h"
#include "../core/torch_versions.h"
#include "device_sequence.h"
#include "launch.h"
#include "plan.h"
#include "request.h"

namespace fastlstm {

using c10::cuda::current_device;  // that of the call, whose CUDAGuard made it so

// The compute capability for which the code was compiled that the current device runs, which may be
// less than its own; 0 where the build has none for it.
inline int code_capability() {
  int capability = 0;
  const cudaError_t error = compiled_capability(&capability);
  if (error == cudaErrorNoKernelImageForDevice || error == cudaErrorInvalidDeviceFunction) return 0;
  check_cuda(error, "cudaFuncGetAttributes");
  return capability;
}

// The current device; of none of its multiprocessors if it makes no cooperative launches.
inline CudaDevice cuda_device() {
  const int index = current_device();
  const auto attribute = [&](cudaDeviceAttr name) {
    int value = 0;
    check_cuda(cudaDeviceGetAttribute(&value, name, index), "cudaDeviceGetAttribute");
    return value;
  };
  const int capability = 10 * attribute(cudaDevAttrComputeCapabilityMajor) +
                         attribute(cudaDevAttrComputeCapabilityMinor);
  // Code for older GPUs lacks the persistent kernels, even where a newer one runs it.
  const int code = code_capability();
  CudaDevice device =
      CudaDevice::of(attribute(cudaDevAttrMultiProcessorCount), code < 80 ? code : capability,
                     1e-6 * attribute(cudaDevAttrClockRate));
  device.shared_bytes = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  if (!attribute(cudaDevAttrCooperativeLaunch)) device.sm_count = 0;
  return device;
}

// Whether the error means that the device refused this launch, of which nothing ran. Other errors
// are faults of this program, or of earlier kernels.
inline bool is_refusal(cudaError_t error) {
  return error == cudaErrorCooperativeLaunchTooLarge || error == cudaErrorLaunchOutOfResources ||
         error == cudaErrorInvalidConfiguration || error == cudaErrorNotSupported ||
         error == cudaErrorNotPermitted;
}

inline void remember_refusal(cudaError_t error) {
  const int device = current_device();
  if (!gpu_state().refused.at(device).exchange(true))
    TORCH_WARN("fastlstm: device ", device, " refuses a launch of the persistent engine (",
               cudaGetErrorString(error),
               "). From now on plain calls run PyTorch's own LSTM there, and others the stepwise "
               "engine, which is slower. Where MPS or another program holds multiprocessors, "
               "FASTLSTM_FREE_SMS=N plans without N of them.");
}

struct PlannedCall {
  Task task;
  Plan plan;
  bool by_name;  // the persistent engine was requested by name: a refusal is an error
};

// The current device, without the multiprocessors that are left to others.
inline CudaDevice own_device() {
  CudaDevice device = cuda_device();
  device.sm_count = std::max(0, device.sm_count - free_sms());
  return device;
}

// plan(), which takes microseconds, remembered.
inline Plan known_plan(const Task& task) {
  const std::array<int64_t, 10> key = {
      current_device(), free_sms(),      task.hidden_size, task.batch,         task.steps,
      task.directions,  int(task.dtype), task.allow_tf32,  task.only_stepwise, task.backward};
  const std::lock_guard<std::mutex> lock(gpu_state().mutex);
  auto& plans = gpu_state().plans;
  if (const auto found = plans.find(key); found != plans.end()) return found->second;
  if (plans.size() >= 4096) plans.clear();
  return plans.emplace(key, plan(task, own_device())).first->second;
}

inline PlannedCall plan_call(c10::string_view engine, const Layer& layer, bool backward) {
  const std::string name(engine.data(), engine.size());
  const auto request = parse_engine(name);
  TORCH_CHECK(request,
              "lstm: expected engine to be \"auto\", \"stepwise\", \"persistent\" or "
              "\"persistent:UNITSxROW_TILExROW_GROUPS\" on CUDA, got \"",
              name, "\"");
  const Task task{layer.hidden_size.expect_int(),
                  layer.batch.expect_int(),
                  layer.steps.expect_int(),
                  static_cast<int>(layer.num_directions()),
                  dtype_of(layer.input.scalar_type()),
                  rnn_allows_tf32(),
                  layer.projects() || layer.normalizes(),
                  backward};
  const bool is_auto = request->engine == EngineRequest::kAuto;
  if (request->engine == EngineRequest::kStepwise ||
      (is_auto && gpu_state().refused.at(current_device())))
    return {task, {}, false};
  if (is_auto) return {task, known_plan(task), false};
  const CudaDevice device = own_device();
  const Plan forced = plan_persistent(task, device, request->division);
  TORCH_CHECK(
      forced.persistent, "lstm: the engine \"", name,
      "\" takes float32, bfloat16 and float16 without proj_size and layer normalization, a batch "
      "that is not empty, and a W_hh that fits into the shared memory of the GPU (sm_80 or newer), "
      "got ",
      layer.input.scalar_type(), layer.options().empty() ? "" : " with ", layer.options(),
      ", batch ", task.batch, ", hidden_size ", task.hidden_size, " on sm_", device.capability,
      " with ", device.sm_count, " SMs", free_sms() ? " beside those of FASTLSTM_FREE_SMS" : "");
  return {task, forced, true};
}

}  // namespace fastlstm
