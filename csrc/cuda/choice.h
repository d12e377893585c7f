// Chooses the engine of the op for a call on a GPU: the persistent engine if it is requested by
// name, otherwise the stepwise engine, which serves every call.
#pragma once
#include <algorithm>
#include <cstdlib>
#include <optional>

#include "../core/torch_versions.h"
#include "device_sequence.h"
#include "launch.h"

namespace fastlstm {

// Returns the number that an environment variable holds, or `otherwise` if it is empty or not set.
inline int64_t number_from_environment(const char* variable, const char* quantity, int64_t least,
                                       int64_t otherwise) {
  const char* const text = std::getenv(variable);
  if (!text || !*text) return otherwise;
  char* end = nullptr;
  const int64_t value = std::strtol(text, &end, 10);
  TORCH_CHECK(!*end && value >= least, variable, ": expected a number of ", quantity, ", ", least,
              " or more, got \"", text, "\"");
  return value;
}

// The number of multiprocessors that the persistent engine leaves to other streams and processes.
inline int64_t free_sms() {
  static const int64_t count =
      number_from_environment("FASTLSTM_FREE_SMS", "multiprocessors", 0, 0);
  return count;
}

// Returns Sequence::wait_limit as the environment sets it.
inline uint32_t wait_limit_milliseconds() {
  constexpr int64_t kMaxSeconds = 100'000;  // Block computes 20 * milliseconds in 32 bits
  static const int64_t seconds = number_from_environment("FASTLSTM_WAIT_SECONDS", "seconds", 1, 60);
  return static_cast<uint32_t>(1000 * std::min(seconds, kMaxSeconds));
}

// Describes the current device for the planner. sm_count leaves out free_sms(), and is 0 if the
// device supports no cooperative launches. capability is the GPU's, unless the kernels for the GPU
// were compiled for less than sm_80: then it is theirs. Without kernels for the GPU it is 0.
inline CudaDevice cuda_device() {
  int index = 0;
  check_cuda(cudaGetDevice(&index), "cudaGetDevice");
  const auto attribute = [&](cudaDeviceAttr name) {
    int value = 0;
    check_cuda(cudaDeviceGetAttribute(&value, name, index), "cudaDeviceGetAttribute");
    return value;
  };
  int compiled = 0;
  const cudaError_t error = compiled_capability(&compiled);
  const bool has_kernels =
      error != cudaErrorNoKernelImageForDevice && error != cudaErrorInvalidDeviceFunction;
  if (has_kernels) check_cuda(error, "cudaFuncGetAttributes");
  const int capability = 10 * attribute(cudaDevAttrComputeCapabilityMajor) +
                         attribute(cudaDevAttrComputeCapabilityMinor);
  const bool cooperates = attribute(cudaDevAttrCooperativeLaunch);
  const int64_t sms = cooperates ? attribute(cudaDevAttrMultiProcessorCount) - free_sms() : 0;
  return {static_cast<int>(std::max<int64_t>(sms, 0)), compiled < 80 ? compiled : capability,
          attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin)};
}

// Returns how the persistent engine divides the work of a call, or nothing if the stepwise engine
// serves it. Raises an error if the persistent engine was requested and cannot serve the call.
inline std::optional<Tiling> plan_persistent(c10::string_view engine, const LayerCall& layer,
                                             bool backward) {
  if (engine == "auto" || engine == "stepwise") return std::nullopt;
  TORCH_CHECK(
      engine == "persistent",
      "lstm: expected engine to be \"auto\", \"stepwise\" or \"persistent\" on CUDA, got \"",
      engine, "\"");
  const Sizes s = layer.sizes();
  const auto dtype = dtype_of(layer.input.scalar_type());
  const int directions = static_cast<int>(s.directions);
  const CudaTask task{s.hidden_size,        s.batch, s.steps, directions, dtype,
                      matmul_allows_tf32(), backward};
  const CudaDevice device = cuda_device();
  std::optional<Tiling> tiling;
  if (!layer.projects() && !layer.normalizes() && !layer.h_mask) tiling = best_tiling(task, device);
  TORCH_CHECK(
      tiling, "lstm: the engine \"persistent\" takes float32, bfloat16 and float16 without ",
      "proj_size, layer normalization and recurrent dropout, a batch that is not empty, and a W_hh "
      "that fits into the shared memory of the GPU (sm_80 or newer), got ",
      layer.input.scalar_type(), layer.options_in_use().empty() ? "" : " with ",
      layer.options_in_use(), ", batch ", task.batch, ", hidden_size ", task.hidden_size, " on sm_",
      device.capability, " with ", device.sm_count, " SMs, and ", free_sms(),
      " left free by FASTLSTM_FREE_SMS");
  return tiling;
}

}  // namespace fastlstm
