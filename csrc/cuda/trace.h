// What blocks did when, in a checked build (FASTLSTM_CHECKED=1 of setup.py): their SM's clock when
// one of their warps began its product, which begins with waiting, and when it was done, in each
// step; and how often a thread of it polled 16 bytes that were not there. Other builds contain
// none of this.
#pragma once
#include "device.h"
#include "persistent.h"

namespace fastlstm {

constexpr int kTraceThread = kThreads - 32;  // of the last warp, which always has a part of K

#if defined(FASTLSTM_TRACE)

#if defined(FASTLSTM_EMULATOR)
inline long long clock64() {
  static long long ticks = 0;
  return ++ticks;
}
#endif

static __device__ long long trace_entries[kTraceBlocks][kTraceSteps][kTraceEntries];

__device__ inline long long* trace_entry(int step, TraceEntry entry) {
  const bool kept =
      threadIdx.x == kTraceThread && blockIdx.x < kTraceBlocks && 0 <= step && step < kTraceSteps;
  return kept ? &trace_entries[blockIdx.x][step][entry] : nullptr;
}
__device__ inline void trace(int step, TraceEntry entry) {
  if (long long* const at = trace_entry(step, entry)) *at = clock64();
}
__device__ inline void trace_poll(int step) {
  if (long long* const at = trace_entry(step, kPollsInVain)) ++*at;
}

// Copies the entries of this file's kernels to the host and clears them. Waits for the device.
inline cudaError_t take_entries(long long* host) {
#if defined(FASTLSTM_EMULATOR)
  std::memcpy(host, trace_entries, sizeof trace_entries);
  std::memset(trace_entries, 0, sizeof trace_entries);
  return cudaSuccess;
#else
  void* device = nullptr;
  cudaError_t error = cudaGetSymbolAddress(&device, trace_entries);
  if (error == cudaSuccess)
    error = cudaMemcpy(host, device, sizeof trace_entries, cudaMemcpyDeviceToHost);
  return error == cudaSuccess ? cudaMemset(device, 0, sizeof trace_entries) : error;
#endif
}

#else

__device__ inline void trace(int /*step*/, TraceEntry) {}
__device__ inline void trace_poll(int /*step*/) {}

#endif

}  // namespace fastlstm
