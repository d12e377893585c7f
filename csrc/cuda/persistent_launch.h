// The launch of a persistent kernel: from the dtype and the tiling to the instance that was
// compiled for them.
#pragma once
#include "persistent_product.h"

namespace fastlstm {

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
    Walk{call, tiling}.walk();
  else
    __trap();
}

// Launches the instance of Walk<P, units, row_tile> that was planned.
template <template <class, int, int> class Walk, class P, class Call>
cudaError_t launch_tile(const Call& call, const Tiling& tiling, cudaStream_t stream) {
  cudaError_t error = cudaErrorInvalidValue;  // not compiled
  const auto launch_if_planned = [&](auto units, auto rows) {
    if constexpr (is_compiled(std::is_same<P, Ffma>::value, units, rows))
      if (tiling.units == units && tiling.row_tile == rows)
        error = launch_cooperative(walk_kernel<Walk<P, units, rows>>,
                                   dim3(static_cast<unsigned>(tiling.blocks())), dim3(kThreads),
                                   static_cast<size_t>(tiling.shared_bytes), stream, call, tiling);
  };
  constexpr std::integral_constant<int, 8> k8{};
  constexpr std::integral_constant<int, 16> k16{};
  constexpr std::integral_constant<int, 32> k32{};
  launch_if_planned(k8, k8), launch_if_planned(k8, k16);
  launch_if_planned(k16, k8), launch_if_planned(k16, k16);
  launch_if_planned(k32, k8), launch_if_planned(k32, k16);
  return error;
}

}  // namespace fastlstm
