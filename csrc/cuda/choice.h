// Which engine serves a call on a GPU: the stepwise one, which takes every call, unless the
// persistent one is requested by name.
#pragma once
#include <c10/cuda/CUDAFunctions.h>

#include <algorithm>
#include <optional>

#include "../core/layer.h"
#include "../core/torch_versions.h"
#include "device_sequence.h"
#include "launch.h"
#include "plan.h"
#include "request.h"

namespace fastlstm {

// The compute capability for which the code was compiled that the current device runs, which may be
// less than its own; 0 where the build has none for it.
inline int code_capability() {
  int capability = 0;
  const cudaError_t error = compiled_capability(&capability);
  if (error == cudaErrorNoKernelImageForDevice || error == cudaErrorInvalidDeviceFunction) return 0;
  check_cuda(error, "cudaFuncGetAttributes");
  return capability;
}

// The current device, which is that of the call; with no multiprocessors if it makes no cooperative
// launches.
inline CudaDevice cuda_device() {
  const int index = c10::cuda::current_device();
  const auto attribute = [&](cudaDeviceAttr name) {
    int value = 0;
    check_cuda(cudaDeviceGetAttribute(&value, name, index), "cudaDeviceGetAttribute");
    return value;
  };
  const int capability = 10 * attribute(cudaDevAttrComputeCapabilityMajor) +
                         attribute(cudaDevAttrComputeCapabilityMinor);
  // Code for older GPUs lacks the persistent kernels, even where a newer one runs it.
  const int code = code_capability();
  const bool cooperates = attribute(cudaDevAttrCooperativeLaunch);
  return {cooperates ? attribute(cudaDevAttrMultiProcessorCount) : 0, code < 80 ? code : capability,
          attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin)};
}

// The division of a call's work by the persistent engine; nothing where the stepwise one serves it.
inline std::optional<Tiling> plan_call(c10::string_view engine, const Layer& layer, bool backward) {
  const auto request = parse_engine({engine.data(), engine.size()});
  TORCH_CHECK(request,
              "lstm: expected engine to be \"auto\", \"stepwise\", \"persistent\" or "
              "\"persistent:UNITSxROW_TILExROW_GROUPS\" on CUDA, got \"",
              engine, "\"");
  if (!request->persistent) return std::nullopt;
  const Task task{layer.hidden_size.expect_int(),
                  layer.batch.expect_int(),
                  layer.steps.expect_int(),
                  static_cast<int>(layer.num_directions()),
                  dtype_of(layer.input.scalar_type()),
                  matmul_allows_tf32(),
                  backward};
  CudaDevice device = cuda_device();
  device.sm_count = std::max(0, device.sm_count - free_sms());
  std::optional<Tiling> tiling;
  if (!layer.projects() && !layer.normalizes() && !layer.h_mask)
    tiling = divide(task, device, request->division);
  TORCH_CHECK(
      tiling, "lstm: the engine \"", engine,
      "\" takes float32, bfloat16 and float16 without proj_size, layer normalization and recurrent "
      "dropout, a batch that is not empty, and a W_hh that fits into the shared memory of the GPU "
      "(sm_80 or newer), got ",
      layer.input.scalar_type(), layer.options().empty() ? "" : " with ", layer.options(),
      ", batch ", task.batch, ", hidden_size ", task.hidden_size, " on sm_", device.capability,
      " with ", device.sm_count, " SMs", free_sms() ? " beside those of FASTLSTM_FREE_SMS" : "");
  return tiling;
}

}  // namespace fastlstm
