// Vec<A>: a vector register of float or double, as wide as the instruction set that the including
// file is compiled for (GCC and Clang vector extensions), and a value type for lstm_math.h.
#pragma once
#include <cstdint>
#include <cstring>

#include "../elementary.h"

namespace fastlstm {
namespace FASTLSTM_ISA {

template <typename A>
struct Registers;
template <>
struct Registers<float> {
  typedef float Native __attribute__((vector_size(FASTLSTM_VECTOR_BYTES)));
  typedef uint32_t Bits __attribute__((vector_size(FASTLSTM_VECTOR_BYTES)));
};
template <>
struct Registers<double> {
  typedef double Native __attribute__((vector_size(FASTLSTM_VECTOR_BYTES)));
  typedef uint64_t Bits __attribute__((vector_size(FASTLSTM_VECTOR_BYTES)));
};

template <typename A>
struct Vec {
  static constexpr int lanes = FASTLSTM_VECTOR_BYTES / sizeof(A);
  using Native = typename Registers<A>::Native;
  Native v;

  Vec() = default;
  FASTLSTM_HD explicit Vec(Native native) : v(native) {}
  FASTLSTM_HD explicit Vec(A x) : v(x - Native{}) {}  // every lane

  FASTLSTM_HD static Vec load(const A* from) {
    Vec x;
    std::memcpy(&x.v, from, sizeof x.v);
    return x;
  }
  FASTLSTM_HD void store(A* to) const { std::memcpy(to, &v, sizeof v); }
};

#define FASTLSTM_VEC_OPERATOR(op)                                    \
  template <typename A>                                              \
  FASTLSTM_HD Vec<A> operator op(const Vec<A>& a, const Vec<A>& b) { \
    return Vec<A>(a.v op b.v);                                       \
  }
FASTLSTM_VEC_OPERATOR(+)
FASTLSTM_VEC_OPERATOR(-)
FASTLSTM_VEC_OPERATOR(*)
FASTLSTM_VEC_OPERATOR(/)
#undef FASTLSTM_VEC_OPERATOR

// Lane j of the result is lane index[j] of a and b, counted as one vector of twice as many lanes.
template <typename Native, typename Bits>
FASTLSTM_HD Native shuffle(const Native& a, const Native& b, const Bits& index) {
#if defined(__clang__)
  constexpr int lanes = sizeof(Native) / sizeof(a[0]);
  Native x;
  for (int j = 0; j < lanes; ++j) x[j] = index[j] < lanes ? a[index[j]] : b[index[j] - lanes];
  return x;
#else
  return __builtin_shuffle(a, b, index);
#endif
}

template <typename A>
FASTLSTM_HD Vec<A> clamp(const Vec<A>& x, const Vec<A>& bound) {  // a NaN stays a NaN
  const typename Vec<A>::Native low = -bound.v;
  const typename Vec<A>::Native above = x.v < low ? low : x.v;
  return Vec<A>(above > bound.v ? bound.v : above);
}

template <typename A>
FASTLSTM_HD Vec<A> power_of_two(const Vec<A>& shifted) {
  using C = elementary::Constants<A>;
  typename Registers<A>::Bits bits;
  std::memcpy(&bits, &shifted.v, sizeof bits);
  bits = (bits << C::mantissa_bits) + (C::one << C::mantissa_bits);
  Vec<A> x;
  std::memcpy(&x.v, &bits, sizeof bits);
  return x;
}

template <typename A>
FASTLSTM_HD Vec<A> sigmoid(const Vec<A>& x) {
  return elementary::sigmoid<elementary::Constants<A>>(x);
}

template <typename A>
FASTLSTM_HD Vec<A> tanh(const Vec<A>& x) {
  return elementary::tanh<elementary::Constants<A>>(x);
}

}  // namespace FASTLSTM_ISA
}  // namespace fastlstm
