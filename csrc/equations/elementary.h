// sigmoid and tanh for float and double. On a GPU they are CUDA's own, but for a quotient that may
// be 2 ulp off: an IEEE division takes as long as all the rest. On the host they are written
// without branches and library calls, so that a compiler turns a loop over them into vector code,
// and as templates, so that cpu/vec.h can use the same text for explicit vectors.
//
// Both rest on exp(x) = 2^k (1 + p), k = round(x / ln 2), p = expm1(x - k ln 2) by its Taylor
// series; the remainder is below ln(2)/2, where degree 7 (float) and 13 (double) reach the last
// bit.
//
// A gate that is shut is exactly 0, not a number so small that all that follows runs on subnormals,
// which processors compute up to a hundred times slower.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

// Always inlined, and with nvcc for both host and device. A long lambda has the second after its
// parameters: GCC inlines short ones by itself, and vectorises no loop with a call.
#if defined(__CUDACC__)
#define FASTLSTM_INLINE __host__ __device__ __forceinline__
#define FASTLSTM_INLINE_LAMBDA
#elif defined(__GNUC__)
#define FASTLSTM_INLINE inline __attribute__((always_inline))
#define FASTLSTM_INLINE_LAMBDA __attribute__((always_inline))
#else
#define FASTLSTM_INLINE inline
#define FASTLSTM_INLINE_LAMBDA
#endif

namespace fastlstm {

#if defined(__CUDA_ARCH__)

FASTLSTM_INLINE float sigmoid(float x) { return __fdividef(1.0f, 1.0f + expf(-x)); }
FASTLSTM_INLINE double sigmoid(double x) { return 1.0 / (1.0 + exp(-x)); }
FASTLSTM_INLINE float tanh(float x) { return tanhf(x); }
FASTLSTM_INLINE double tanh(double x) { return ::tanh(x); }
FASTLSTM_INLINE float inverse_square_root(float x) { return rsqrtf(x); }
FASTLSTM_INLINE double inverse_square_root(double x) { return ::rsqrt(x); }

#else

namespace elementary {

template <typename A>
struct Constants;
template <>
struct Constants<float> {
  using Bits = uint32_t;
  static constexpr float round_shift = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  // ln 2 in two parts: k * ln2_high is exact for every k that occurs.
  static constexpr float ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;
  static constexpr float max_exponent = 87.0f, tanh_saturates = 10.0f;  // k = 126 at most
  static constexpr Bits one = 127, mantissa_bits = 23;
  static constexpr int degree = 7;
};
template <>
struct Constants<double> {
  using Bits = uint64_t;
  static constexpr double round_shift = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr double ln2_high = 6.93147180369123816490e-01;
  static constexpr double ln2_low = 1.90821492927058770002e-10;
  static constexpr double max_exponent = 708.5, tanh_saturates = 20.0;  // k = 1022 at most
  static constexpr Bits one = 1023, mantissa_bits = 52;
  static constexpr int degree = 13;
};

template <typename A>
FASTLSTM_INLINE A clamp(A x, A bound) {  // a NaN stays a NaN
  x = x < -bound ? -bound : x;
  return x > bound ? bound : x;
}

// 2^(k + more) from k + round_shift, whose low bits hold k: they move into the exponent field.
template <int more, typename A>
FASTLSTM_INLINE A power_of_two(A shifted) {
  using C = Constants<A>;
  typename C::Bits bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits = (bits << C::mantissa_bits) + ((C::one + more) << C::mantissa_bits);
  std::memcpy(&shifted, &bits, sizeof bits);
  return shifted;
}

constexpr double factorial(int n) { return n == 0 ? 1.0 : n * factorial(n - 1); }

// expm1(r) / r up to r^(degree - 1), by Horner's rule: 1/1! + r (1/2! + r (1/3! + ...)).
template <int degree, int n = 1, typename A>
FASTLSTM_INLINE A expm1_over_r(const A& r) {
  constexpr double coefficient = 1.0 / factorial(n);
  if constexpr (n == degree)
    return A(coefficient);
  else
    return A(coefficient) + r * expm1_over_r<degree, n + 1>(r);
}

template <typename A>
struct Reduced {
  A scale, p;  // 2^more exp(x) = scale * (1 + p)
};

template <typename C, int more, typename A>
FASTLSTM_INLINE Reduced<A> reduce(const A& x) {
  const A shifted = x * A(1.4426950408889634) + A(C::round_shift);
  const A k = shifted - A(C::round_shift);
  const A r = (x - k * A(C::ln2_high)) - k * A(C::ln2_low);
  return {power_of_two<more>(shifted), r * expm1_over_r<C::degree>(r)};
}

// 1 / (1 + exp(-x)) as 4 / (4 + 4 exp(-x)): the same bits, but where the quotient would go below
// the normal numbers, from k = 126 (double: 1022) on, the scale is infinity and the quotient 0.
template <typename C, typename A>
FASTLSTM_INLINE A sigmoid(const A& x) {
  const Reduced<A> e = reduce<C, 2>(clamp(A(0) - x, A(C::max_exponent)));
  return A(4) / (A(4) + e.scale * (A(1) + e.p));
}

// tanh(x) = m / (m + 2) with m = expm1(2x): accurate to the last bits near zero too.
template <typename C, typename A>
FASTLSTM_INLINE A tanh(const A& x) {
  const Reduced<A> e = reduce<C, 0>(A(2) * clamp(x, A(C::tanh_saturates)));
  const A m = e.scale * e.p + (e.scale - A(1));
  return m / (m + A(2));
}

}  // namespace elementary

FASTLSTM_INLINE float sigmoid(float x) {
  return elementary::sigmoid<elementary::Constants<float>>(x);
}
FASTLSTM_INLINE double sigmoid(double x) {
  return elementary::sigmoid<elementary::Constants<double>>(x);
}
FASTLSTM_INLINE float tanh(float x) { return elementary::tanh<elementary::Constants<float>>(x); }
FASTLSTM_INLINE double tanh(double x) { return elementary::tanh<elementary::Constants<double>>(x); }
FASTLSTM_INLINE float inverse_square_root(float x) { return 1 / __builtin_sqrtf(x); }
FASTLSTM_INLINE double inverse_square_root(double x) { return 1 / __builtin_sqrt(x); }

#endif

}  // namespace fastlstm
