// Vec<A>: a vector register of float or double, as wide as the instruction set that the including
// file is compiled for (GCC and Clang vector extensions), and a value type for lstm_math.h.
#pragma once
#include <cstdint>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "../elementary.h"
#include "half.h"
#if FASTLSTM_VECTOR_BYTES == 64
#include <immintrin.h>
#endif

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

// Vectors of the state's dtype from and to tensors of the storage dtype.
template <typename A>
FASTLSTM_HD void load(const A* from, Vec<A>& x) {
  x = Vec<A>::load(from);
}
template <typename A>
FASTLSTM_HD void store(const Vec<A>& x, A* to) {
  x.store(to);
}

typedef uint16_t HalfRegister __attribute__((vector_size(FASTLSTM_VECTOR_BYTES / 2)));

FASTLSTM_HD void load(const bfloat16* from, Vec<float>& x) {
  HalfRegister half;
  std::memcpy(&half, from, sizeof half);
  const Registers<float>::Bits bits = __builtin_convertvector(half, Registers<float>::Bits) << 16;
  std::memcpy(&x.v, &bits, sizeof bits);
}
#if defined(FASTLSTM_BFLOAT16_PAIRS)
FASTLSTM_HD void store(const Vec<float>& x, bfloat16* to) {  // rounds subnormal numbers to zero
  const __m256bh rounded = _mm512_cvtneps_pbh(x.v);
  std::memcpy(to, &rounded, sizeof rounded);
}
#else
FASTLSTM_HD void store(const Vec<float>& x, bfloat16* to) {  // as bfloat16(float) in half.h
  Registers<float>::Bits bits;
  std::memcpy(&bits, &x.v, sizeof bits);
  Registers<float>::Bits rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  rounded = (bits & 0x7fffffff) > 0x7f800000 ? Registers<float>::Bits{} + 0x7fc0 : rounded;
  const HalfRegister half = __builtin_convertvector(rounded, HalfRegister);
  std::memcpy(to, &half, sizeof half);
}
#endif

// The first n lanes only: at a ragged right edge. The other lanes of what is loaded are zero.
template <typename T, typename A>
FASTLSTM_HD void load(const T* from, Vec<A>& x, int64_t n) {
  if (n == Vec<A>::lanes) return load(from, x);
#if FASTLSTM_VECTOR_BYTES == 64
  const auto mask = (1u << n) - 1;
  if constexpr (sizeof(T) == 8) {
    x.v = _mm512_maskz_loadu_pd(mask, from);
  } else if constexpr (sizeof(T) == 4) {
    x.v = _mm512_maskz_loadu_ps(mask, from);
  } else {
    const __m256i half = _mm256_maskz_loadu_epi16(mask, from);
    load(reinterpret_cast<const T*>(&half), x);
  }
#else
  T lanes[Vec<A>::lanes] = {};
  for (int64_t l = 0; l < n; ++l) lanes[l] = from[l];
  load(lanes, x);
#endif
}
template <typename T, typename A>
FASTLSTM_HD void store(const Vec<A>& x, T* to, int64_t n) {
  if (n == Vec<A>::lanes) return store(x, to);
#if FASTLSTM_VECTOR_BYTES == 64
  const auto mask = (1u << n) - 1;
  if constexpr (sizeof(T) == 8) {
    _mm512_mask_storeu_pd(to, mask, x.v);
  } else if constexpr (sizeof(T) == 4) {
    _mm512_mask_storeu_ps(to, mask, x.v);
  } else {
    __m256i half;
    store(x, reinterpret_cast<T*>(&half));
    _mm256_mask_storeu_epi16(to, mask, half);
  }
#else
  T lanes[Vec<A>::lanes];
  store(x, lanes);
  for (int64_t l = 0; l < n; ++l) to[l] = lanes[l];
#endif
}

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

// x * y + sum, rounded once where the instruction set can. Left to the compiler, GCC does not fuse
// the chain of a tile with a single sum, and a result would depend on the shape of its tile.
#if defined(__x86_64__) && FASTLSTM_VECTOR_BYTES == 64
FASTLSTM_HD Vec<float> fused(const Vec<float>& x, const Vec<float>& y, const Vec<float>& sum) {
  return Vec<float>(_mm512_fmadd_ps(x.v, y.v, sum.v));
}
FASTLSTM_HD Vec<double> fused(const Vec<double>& x, const Vec<double>& y, const Vec<double>& sum) {
  return Vec<double>(_mm512_fmadd_pd(x.v, y.v, sum.v));
}
#elif defined(__x86_64__) && FASTLSTM_VECTOR_BYTES == 32
FASTLSTM_HD Vec<float> fused(const Vec<float>& x, const Vec<float>& y, const Vec<float>& sum) {
  return Vec<float>(_mm256_fmadd_ps(x.v, y.v, sum.v));
}
FASTLSTM_HD Vec<double> fused(const Vec<double>& x, const Vec<double>& y, const Vec<double>& sum) {
  return Vec<double>(_mm256_fmadd_pd(x.v, y.v, sum.v));
}
#else
template <typename A>
FASTLSTM_HD Vec<A> fused(const Vec<A>& x, const Vec<A>& y, const Vec<A>& sum) {
  return x * y + sum;
}
#endif

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

#if defined(__x86_64__) && FASTLSTM_VECTOR_BYTES == 64
// Where one of the two is a NaN, min and max return the second.
FASTLSTM_HD Vec<float> clamp(const Vec<float>& x, const Vec<float>& bound) {
  return Vec<float>(_mm512_min_ps(bound.v, _mm512_max_ps(-bound.v, x.v)));
}
FASTLSTM_HD Vec<double> clamp(const Vec<double>& x, const Vec<double>& bound) {
  return Vec<double>(_mm512_min_pd(bound.v, _mm512_max_pd(-bound.v, x.v)));
}
#endif

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
