// The dtypes of the library: what tensors hold, and what the cell state and all sums are kept in.
// Dispatch, instantiations and checks follow from this list.
#pragma once

// macro(C++ type of a tensor's elements, type of the state, PyTorch's name of the first)
#define FASTLSTM_FOR_EACH_DTYPE(macro)                                                      \
  macro(float, float, Float) macro(double, double, Double) macro(bfloat16, float, BFloat16) \
      macro(float16, float, Half)
