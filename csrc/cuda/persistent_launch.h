// The launch of a persistent kernel: from the dtype and the tiling to the instance that was
// compiled for them.
#pragma once
#include "persistent_product.h"

namespace fastlstm {

inline bool is_aligned(const void* pointer, int64_t row_bytes) {
  return reinterpret_cast<uintptr_t>(pointer) % 16 == 0 && row_bytes % 16 == 0;
}

// function(P()) for the kind of arithmetic of a dtype.
template <typename T, class Function>
cudaError_t with_product(bool ffma, const Function& function) {
  if constexpr (std::is_same<T, bfloat16>::value)
    return function(BFloat16Mma());
  else if constexpr (std::is_same<T, float16>::value)
    return function(Float16Mma());
  else {
    static_assert(std::is_same<T, float>::value, "a dtype without a product");
    return ffma ? function(Ffma()) : function(Tf32Mma());
  }
}

template <class Walk>
__global__ void __launch_bounds__(kThreads, 1)
    walk_kernel(typename Walk::Call call, Tiling tiling) {
  if constexpr (kRunsPersistent)
    Walk(call, tiling).walk();
  else
    __trap();
}

// A launch of the instance of Walk<P, kUnits, kTile> that was planned. `aligned`: what is exchanged
// starts at multiples of 16 bytes.
template <template <class, int, int> class Walk, class Call>
struct Launcher {
  const Call& call;
  const Task& task;
  const Tiling& tiling;
  const bool aligned;
  cudaStream_t stream;

  template <class P, int kUnits, int kTile>
  cudaError_t run() const {
    if (!aligned) return cudaErrorInvalidValue;
    if (tiling.exchange_width != task.exchange_width()) return cudaErrorInvalidValue;
    return launch_cooperative(walk_kernel<Walk<P, kUnits, kTile>>,
                              dim3(static_cast<unsigned>(tiling.blocks())), dim3(kThreads),
                              static_cast<size_t>(SharedLayout(task, tiling).total()), stream, call,
                              tiling);
  }

  template <class P, int kUnits>
  cudaError_t run_units() const {
    if constexpr (is_compiled(std::is_same<P, Ffma>::value, kUnits, 16))
      if (tiling.row_tile == 16) return run<P, kUnits, 16>();
    if (tiling.row_tile == 8) return run<P, kUnits, 8>();
    return cudaErrorInvalidValue;
  }

  template <class P>
  cudaError_t run_product() const {
    if (tiling.units == 8) return run_units<P, 8>();
    if (tiling.units == 16) return run_units<P, 16>();
    if (tiling.units == 32) return run_units<P, 32>();
    return cudaErrorInvalidValue;
  }

  template <typename T>
  cudaError_t run_dtype() const {
    return with_product<T>(task.ffma(), [&](auto p) { return run_product<decltype(p)>(); });
  }
};

}  // namespace fastlstm
