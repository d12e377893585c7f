// The dtypes of the library: of tensors, and of the cell state and all sums.
// Dispatch, instantiations and checks follow from this list.
#pragma once

// macro(C++ type of a tensor's elements, type of the state, PyTorch's name of the first)
#define FASTLSTM_FOR_EACH_DTYPE(macro)                                                      \
  macro(float, float, Float) macro(double, double, Double) macro(bfloat16, float, BFloat16) \
      macro(float16, float, Half)

namespace fastlstm {

// The names of the dtypes, for planners.
enum class Dtype { kFloat64, kFloat32, kBFloat16, kFloat16 };

// The size of an element. (Without a default, so that a compiler names the switch that lacks a
// dtype.)
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
  return 0;  // no value of Dtype
}

}  // namespace fastlstm
