// The dtypes that the library computes: the dtype of tensors, and that of the cell state and of all
// sums. The dispatch and the stepwise kernels of CUDA are made from this list. The CPU's dispatch
// (cpu/dtypes.h) and the check of a call's dtype (core/layer_call.cpp) name each dtype again.
#pragma once

// Calls macro(C++ type of an element, type of the cell state, PyTorch's name of the dtype).
#define FASTLSTM_FOR_EACH_DTYPE(macro)                                                      \
  macro(float, float, Float) macro(double, double, Double) macro(bfloat16, float, BFloat16) \
      macro(float16, float, Half)

namespace fastlstm {

// The dtypes as an enum, for planners, which know no torch.
enum class Dtype { kFloat64, kFloat32, kBFloat16, kFloat16 };

// The size of an element in bytes. Without a default the compiler warns if a dtype is missing.
constexpr int bytes_of(Dtype dtype) {
  switch (dtype) {
    case Dtype::kFloat64:
      return 8;
    case Dtype::kFloat32:
      return 4;
    case Dtype::kBFloat16:
    case Dtype::kFloat16:
      return 2;
  }
  return 0;  // not reached: no value of Dtype is left
}

}  // namespace fastlstm
