// A CUDA runtime for the project's host code. A launch runs the kernel in the emulator to its end.
// The runtime records the calls, and refuses a launch with more shared memory than the attribute of
// its function allows; the attribute belongs to the function and the device, not to the thread. It
// has no function that waits for the device, because a CUDA graph cannot capture such a call.
#pragma once
#include <functional>
#include <map>
#include <mutex>
#include <vector>

#include "simt.h"

enum cudaDeviceAttr {
  cudaDevAttrComputeCapabilityMajor,
  cudaDevAttrComputeCapabilityMinor,
  cudaDevAttrMultiProcessorCount,
  cudaDevAttrMaxSharedMemoryPerBlockOptin,
  cudaDevAttrCooperativeLaunch
};
struct cudaFuncAttributes {
  int ptxVersion;
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };

namespace runtime {
// The value of Sequence::wait_limit. Each read of the emulator's clock takes one millisecond.
constexpr uint32_t kWaitLimit = 1'000'000;

struct Event {
  enum Kind { kMemset, kLaunch, kCooperativeLaunch } kind;
  int device;
  cudaStream_t stream;
  size_t bytes;     // bytes set by a memset, or bytes of shared memory of a launch
  unsigned blocks;  // thread blocks of a launch
};

// The state that all threads share. All devices are equal.
struct Runtime {
  std::mutex mutex;  // guards this state and the emulator
  int sm_count = 24, shared_bytes = 227 * 1024;
  int compiled_capability = 90;                             // for which the kernels were compiled
  cudaError_t attributes_error = cudaSuccess;               // the result of cudaFuncGetAttributes
  std::map<std::pair<int, const void*>, int> shared_limit;  // bytes, by device and function
  std::vector<Event> events;
  std::function<void()> on_attribute_set;  // if set, called after a function's attribute is set
};
inline Runtime& state() {
  static Runtime r;
  return r;
}

struct Thread {
  int device = 0;
  cudaStream_t stream = nullptr;
  cudaError_t last_error = cudaSuccess;
};
inline Thread& thread() {
  static thread_local Thread t;
  return t;
}

// Records an error as the last error of the thread, and returns the error.
inline cudaError_t recorded(cudaError_t error) {
  if (error != cudaSuccess) thread().last_error = error;
  return error;
}

template <typename... P, size_t... kIndex>
cudaError_t launch(simt::Residency residency, void (*kernel)(P...), dim3 grid, dim3 block,
                   void** arguments, size_t shared_bytes, cudaStream_t stream,
                   std::index_sequence<kIndex...>) {
  const std::lock_guard<std::mutex> lock(state().mutex);
  const int device = thread().device;
  const auto limit = state().shared_limit.find({device, reinterpret_cast<const void*>(kernel)});
  const size_t max_bytes = limit == state().shared_limit.end() ? 48 * 1024 : limit->second;
  if (shared_bytes > max_bytes) return recorded(cudaErrorInvalidValue);
  state().events.push_back(
      {residency == simt::kAllBlocks ? Event::kCooperativeLaunch : Event::kLaunch, device, stream,
       shared_bytes, grid.x * grid.y * grid.z});
  return recorded(simt::launch(grid, block, shared_bytes, residency,
                               [&] { kernel(*static_cast<P*>(arguments[kIndex])...); }));
}

}  // namespace runtime

template <typename... P>
cudaError_t cudaLaunchKernel(void (*kernel)(P...), dim3 grid, dim3 block, void** arguments,
                             size_t shared_bytes, cudaStream_t stream) {
  return runtime::launch(simt::kBlocksInTurn, kernel, grid, block, arguments, shared_bytes, stream,
                         std::index_sequence_for<P...>());
}
template <typename... P>
cudaError_t cudaLaunchCooperativeKernel(void (*kernel)(P...), dim3 grid, dim3 block,
                                        void** arguments, size_t shared_bytes,
                                        cudaStream_t stream) {
  return runtime::launch(simt::kAllBlocks, kernel, grid, block, arguments, shared_bytes, stream,
                         std::index_sequence_for<P...>());
}

template <typename Function>
cudaError_t cudaFuncSetAttribute(Function* function, cudaFuncAttribute, int value) {
  runtime::Runtime& r = runtime::state();
  if (value < 0 || value > r.shared_bytes) return runtime::recorded(cudaErrorInvalidValue);
  std::unique_lock<std::mutex> lock(r.mutex);
  r.shared_limit[{runtime::thread().device, reinterpret_cast<const void*>(function)}] = value;
  lock.unlock();
  if (r.on_attribute_set) r.on_attribute_set();
  return cudaSuccess;
}

inline cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void*) {
  attributes->ptxVersion = runtime::state().compiled_capability;
  return runtime::recorded(runtime::state().attributes_error);
}

inline cudaError_t cudaGetDevice(int* device) {
  *device = runtime::thread().device;
  return cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  const runtime::Runtime& r = runtime::state();
  if (device != runtime::thread().device) return runtime::recorded(cudaErrorInvalidValue);
  const int values[] = {9, 0, r.sm_count, r.shared_bytes, 1};
  *value = values[attribute];
  return cudaSuccess;
}

inline cudaError_t cudaMemsetAsync(void* address, int byte, size_t count, cudaStream_t stream) {
  const std::lock_guard<std::mutex> lock(runtime::state().mutex);
  runtime::state().events.push_back(
      {runtime::Event::kMemset, runtime::thread().device, stream, count, 0});
  std::memset(address, byte, count);
  return cudaSuccess;
}

inline cudaError_t cudaPeekAtLastError() { return runtime::thread().last_error; }
inline cudaError_t cudaGetLastError() {
  return std::exchange(runtime::thread().last_error, cudaSuccess);
}
inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess ? "no error" : "an error of the emulator";
}
