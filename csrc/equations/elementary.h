// sigmoid and tanh for float and double.
//
// On a GPU they call CUDA's functions. The float sigmoid divides with __fdividef, whose error is
// up to 2 ulp: an IEEE division would take as long as the rest of the function.
//
// On the host they have no branches and no library calls, so that the compiler can vectorize a loop
// over them, and they are templates, so that cpu/vec.h can use them with vectors. Both use
// exp(x) = 2^k exp(r), where k is the integer nearest to x / ln(2), and r = x - k ln(2). A
// polynomial computes exp(r) - 1. Remez's algorithm gave the coefficients with the least relative
// error on [-ln(2)/2, ln(2)/2]. After the coefficients are rounded to float or double, the error is
// 1.7e-8 or 3.4e-17, which is 0.3 of the unit roundoff (2^-24 or 2^-53). The sigmoid of a large
// negative number is exactly 0: a subnormal result would slow down all later arithmetic with it.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

// FASTLSTM_INLINE makes a function always inline, and with nvcc a function of host and device.
// FASTLSTM_INLINE_LAMBDA, after the parameters of a lambda, makes the lambda always inline: GCC
// inlines only short lambdas by itself, and it does not vectorize a loop that contains a call.
#if defined(__CUDACC__)
#define FASTLSTM_INLINE __host__ __device__ __forceinline__
#define FASTLSTM_INLINE_LAMBDA
#else
#define FASTLSTM_INLINE inline __attribute__((always_inline))
#define FASTLSTM_INLINE_LAMBDA __attribute__((always_inline))
#endif

namespace fastlstm {

template <typename To, typename From>
FASTLSTM_INLINE To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From), "same size");
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

// Returns x * y + sum, rounded once if the target has a fused multiply-add. In f * c + i * g the
// compiler could fuse either product. So flags in setup.py limit what it fuses besides these calls.
template <typename A>
FASTLSTM_INLINE A fused(const A& x, const A& y, const A& sum) {
  return x * y + sum;
}
#if defined(__CUDA_ARCH__) || defined(FASTLSTM_FMA) || defined(__FP_FAST_FMAF)
FASTLSTM_INLINE float fused(float x, float y, float sum) { return __builtin_fmaf(x, y, sum); }
FASTLSTM_INLINE double fused(double x, double y, double sum) { return __builtin_fma(x, y, sum); }
#endif

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
  using Bits = uint32_t;                             // an integer of the size of a float
  static constexpr float round_shift = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  static constexpr float max_exponent = 87.0f, tanh_saturates = 10.0f;  // limits of |x|; k <= 126
  static constexpr Bits exponent_bias = 127, mantissa_bits = 23;
  // The coefficients of (exp(r) - 1) / r, from r^0 on.
  static constexpr double coefficients[] = {1.0000000000000000,    0.49999998154059619,
                                            0.16666543621031182,   0.041667199855066106,
                                            0.0083665205757436044, 0.0013882521767132332};
};
template <>
struct Constants<double> {
  using Bits = uint64_t;
  static constexpr double round_shift = 6755399441055744.0;             // 1.5 * 2^52
  static constexpr double max_exponent = 708.5, tanh_saturates = 20.0;  // limits of |x|; k <= 1022
  static constexpr Bits exponent_bias = 1023, mantissa_bits = 52;
  static constexpr double coefficients[] = {
      1.0000000000000000,    0.50000000000000052,   0.16666666666666589,    0.041666666666576755,
      0.0083333333333895521, 0.0013888888931564846, 0.00019841269719005343, 2.4801505273827253e-5,
      2.7557407545020756e-6, 2.7626037876158938e-7, 2.5053773975691708e-8};
};

template <typename A>
FASTLSTM_INLINE A clamp(A x, A bound) {  // a NaN stays a NaN
  x = x < -bound ? -bound : x;
  return x > bound ? bound : x;
}

// Returns 2^(k + exponent_offset). `shifted` is k + round_shift: its low bits hold the integer k,
// and are shifted into the exponent field. The second argument is k, for the overload for AVX-512.
template <int exponent_offset, typename A>
FASTLSTM_INLINE A power_of_two(A shifted, A) {
  using C = Constants<A>;
  const auto bits = bits_as<typename C::Bits>(shifted) << C::mantissa_bits;
  return bits_as<A>(bits + ((C::exponent_bias + exponent_offset) << C::mantissa_bits));
}

constexpr double power(int x, int n) { return n == 0 ? 1 : x * power(x, n - 1); }

// Returns (exp(factor * r) - 1) / r by Horner's rule: a recursion over the coefficients from n on.
template <typename C, int factor, int n = 0, typename A>
FASTLSTM_INLINE A expm1_over_r(const A& r) {
  constexpr double coefficient = C::coefficients[n] * power(factor, n + 1);
  if constexpr ((n + 1) * sizeof(double) == sizeof(C::coefficients))
    return A(coefficient);
  else
    return fused(r, expm1_over_r<C, factor, n + 1>(r), A(coefficient));
}

// The number scale * (1 + p).
template <typename A>
struct Exponential {
  A scale, p;
};

// Returns 2^exponent_offset exp(factor x) for |factor x| <= C::max_exponent, computed as
// 2^(k + exponent_offset) exp(factor r) with r = x - k ln(2) / factor.
template <typename C, int factor, int exponent_offset, typename A>
FASTLSTM_INLINE Exponential<A> exponential(const A& x) {
  constexpr double kLn2 = 0.6931471805599453;
  const A shifted = fused(x, A(factor / kLn2), A(C::round_shift)), k = shifted - A(C::round_shift);
  const A r = fused(k, A(-kLn2 / factor), x);
  return {power_of_two<exponent_offset>(shifted, k), r * expm1_over_r<C, factor>(r)};
}

// Returns 1 / (1 + exp(-x)), computed as 4 / (4 + 4 exp(-x)). Both formulas give the same bits
// except for the largest k, 126 (in double 1022): then 4 exp(-x) overflows to infinity and the
// result is 0, while the first formula would give a number that is subnormal or nearly so.
template <typename C, typename A>
FASTLSTM_INLINE A sigmoid(const A& x) {
  const Exponential<A> e = exponential<C, -1, 2>(clamp(x, A(C::max_exponent)));
  return A(4) / fused(e.scale, A(1) + e.p, A(4));
}

// Returns tanh(x) = m / (m + 2) with m = exp(2x) - 1. This form is accurate near zero too.
template <typename C, typename A>
FASTLSTM_INLINE A tanh(const A& x) {
  const Exponential<A> e = exponential<C, 2, 0>(clamp(x, A(C::tanh_saturates)));
  const A m = fused(e.scale, e.p, e.scale - A(1));
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
