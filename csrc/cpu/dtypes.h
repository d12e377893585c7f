// The dtypes on the CPU.
#pragma once
#include "cpu/half.h"
#include "dtype_list.h"

namespace fastlstm {

template <typename T>
struct StateOf;
#define FASTLSTM_STATE(T, A, name) \
  template <>                      \
  struct StateOf<T> {              \
    using type = A;                \
  };
FASTLSTM_FOR_EACH_DTYPE(FASTLSTM_STATE)
#undef FASTLSTM_STATE

// Weights of 8 bits: no tensor of a layer holds them, a product does (products/tiles_int8.h).
struct int8 {
  int8_t value;
};

// The formats of packed weights: macro(C++ type of an element, name, what a tensor of them holds
// unpacked, bits of an element, neighbours along K that share a scale). First those of integers.
#define FASTLSTM_FOR_EACH_INTEGER_FORMAT(macro) macro(int8, int8, Char, 8, INT32_MAX)
#define FASTLSTM_FOR_EACH_FORMAT(macro)                                     \
  macro(float, float32, Float, 32, 0) macro(double, float64, Double, 64, 0) \
      macro(bfloat16, bfloat16, BFloat16, 16, 0) FASTLSTM_FOR_EACH_INTEGER_FORMAT(macro)

#define FASTLSTM_STATE(W, name, unpacked, bits, group) \
  template <>                                          \
  struct StateOf<W> {                                  \
    using type = float;                                \
  };
FASTLSTM_FOR_EACH_INTEGER_FORMAT(FASTLSTM_STATE)
#undef FASTLSTM_STATE

// What a product sums in before the sums become those of the state's dtype.
template <typename T>
struct SumOf {
  using type = typename StateOf<T>::type;
};
#define FASTLSTM_SUM(W, name, unpacked, bits, group) \
  template <>                                        \
  struct SumOf<W> {                                  \
    using type = int32_t;                            \
  };
FASTLSTM_FOR_EACH_INTEGER_FORMAT(FASTLSTM_SUM)
#undef FASTLSTM_SUM

template <typename T>
using State_t = typename StateOf<T>::type;

}  // namespace fastlstm
