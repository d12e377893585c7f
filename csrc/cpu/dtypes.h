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
template <>
struct StateOf<int8> {
  using type = float;
};
// What a product sums in before the sums become those of the state's dtype.
template <typename T>
struct SumOf {
  using type = typename StateOf<T>::type;
};
template <>
struct SumOf<int8> {
  using type = int32_t;
};

template <typename T>
using State_t = typename StateOf<T>::type;

}  // namespace fastlstm
