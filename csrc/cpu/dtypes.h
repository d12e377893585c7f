// The dtypes on the CPU.
#pragma once
#include <type_traits>

#include "cpu/half.h"
#include "dtype_list.h"

namespace fastlstm {

// Weights of 8 bits: no tensor of a layer holds them, a product does (products/tiles_int8.h).
struct int8 {
  int8_t value;
};

// A float32 as the sum of three bfloat16, in which the products of AMX take it: no tensor of a
// layer holds them, the rows and panels of a product do (products/bfloat16x3.h).
struct bfloat16x3 {
  uint16_t planes[3];
};

// The elements of a matrix that a product of W packs: W, or what it splits.
template <typename W>
using Given_t = std::conditional_t<std::is_same_v<W, bfloat16x3>, float, W>;

// The formats of packed weights: macro(C++ type of an element, name, what a tensor of them holds
// unpacked, bits of an element, neighbors along K that share a scale). First those of integers.
#define FASTLSTM_FOR_EACH_INTEGER_FORMAT(macro) macro(int8, int8, Char, 8, INT32_MAX)
#define FASTLSTM_FOR_EACH_FORMAT(macro)                                     \
  macro(float, float32, Float, 32, 0) macro(double, float64, Double, 64, 0) \
      macro(bfloat16, bfloat16, BFloat16, 16, 0) FASTLSTM_FOR_EACH_INTEGER_FORMAT(macro)

// The dtype of a layer's state, and of the scales of weights that are integers; and what a product
// sums in before its sums are of that dtype. A type of neither list has none.
template <typename T>
struct Arithmetic;
#define FASTLSTM_FLOATING(T, A, name) \
  template <>                         \
  struct Arithmetic<T> {              \
    using State = A;                  \
    using Sum = A;                    \
  };
FASTLSTM_FOR_EACH_DTYPE(FASTLSTM_FLOATING)
#undef FASTLSTM_FLOATING
#define FASTLSTM_INTEGER(T, ...) \
  template <>                    \
  struct Arithmetic<T> {         \
    using State = float;         \
    using Sum = int32_t;         \
  };
FASTLSTM_FOR_EACH_INTEGER_FORMAT(FASTLSTM_INTEGER)
#undef FASTLSTM_INTEGER
template <>
struct Arithmetic<bfloat16x3> : Arithmetic<float> {};
template <typename T>
using State_t = typename Arithmetic<T>::State;
template <typename T>
using Sum_t = typename Arithmetic<T>::Sum;

}  // namespace fastlstm
