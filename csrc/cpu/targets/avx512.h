// AVX-512: 32 registers of 64 bytes, and masks for incomplete vectors.
#pragma once
#include <immintrin.h>

#define FASTLSTM_REGISTER "+v"
#include "cpu/vec.h"

namespace fastlstm::FASTLSTM_ISA {

struct Target {
  // 6 x 4 sums, 4 vectors of the panel and a broadcast: 29 of the 32 registers.
  static constexpr int tile_rows = 6, tile_vectors = 4;
  static constexpr int int8_tile_rows = 4;
  static constexpr bool has_16_bit_row_kernels = true;
};

FASTLSTM_INLINE uint32_t first_lanes(int64_t n) { return (1u << n) - 1; }

// Overloads of functions of vec.h. power_of_two is one instruction instead of two. In clamp a NaN
// stays a NaN, because min and max return their second operand if one of the two is a NaN.
#define FASTLSTM_OVERLOADS(A, suffix, Mask)                                           \
  FASTLSTM_INLINE void load(const A* from, Vec<A>& x, int64_t n) {                    \
    if (n == Vec<A>::lanes) return load(from, x);                                     \
    x.v = _mm512_maskz_loadu_##suffix(static_cast<Mask>(first_lanes(n)), from);       \
  }                                                                                   \
  FASTLSTM_INLINE void store(const Vec<A>& x, A* to, int64_t n) {                     \
    if (n == Vec<A>::lanes) return store(x, to);                                      \
    _mm512_mask_storeu_##suffix(to, static_cast<Mask>(first_lanes(n)), x.v);          \
  }                                                                                   \
  FASTLSTM_INLINE Vec<A> fused(const Vec<A>& x, const Vec<A>& y, const Vec<A>& sum) { \
    return Vec<A>(_mm512_fmadd_##suffix(x.v, y.v, sum.v));                            \
  }                                                                                   \
  FASTLSTM_INLINE Vec<A> clamp(const Vec<A>& x, const Vec<A>& bound) {                \
    return Vec<A>(_mm512_min_##suffix(bound.v, _mm512_max_##suffix(-bound.v, x.v)));  \
  }                                                                                   \
  template <int exponent_offset>                                                      \
  FASTLSTM_INLINE Vec<A> power_of_two(const Vec<A>&, const Vec<A>& k) {               \
    return Vec<A>(_mm512_scalef_##suffix(Vec<A>(1 << exponent_offset).v, k.v));       \
  }
FASTLSTM_INLINE void load(const float16* from, Vec<float>& x) {
  x.v = _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}
FASTLSTM_OVERLOADS(float, ps, __mmask16)
FASTLSTM_OVERLOADS(double, pd, __mmask8)
#undef FASTLSTM_OVERLOADS

FASTLSTM_INLINE void store_lowest_bytes(const Int32Vec& x, void* to) {
  const __m128i bytes = _mm512_cvtepi32_epi8((__m512i)x);
  std::memcpy(to, &bytes, sizeof bytes);
}

// The dot product of avx2.h, with the signs as a mask.
struct DotProduct {
  static constexpr int32_t zero_point = 0;
  struct Row {
    __m512i magnitude;
    __mmask64 negative;
  };
  FASTLSTM_INLINE static Row row(int32_t quad) {
    const __m512i a = _mm512_set1_epi32(quad);
    return {_mm512_abs_epi8(a), _mm512_movepi8_mask(a)};
  }
  FASTLSTM_INLINE static Int32Vec add(const Row& a, Int8Quads b, Int32Vec sum) {
    const __m512i terms = (__m512i)b;
    const __m512i flipped = _mm512_mask_sub_epi8(terms, a.negative, _mm512_setzero_si512(), terms);
    const __m512i pairs = _mm512_maddubs_epi16(a.magnitude, flipped);
    return sum + (Int32Vec)_mm512_madd_epi16(pairs, _mm512_set1_epi16(1));
  }
};

}  // namespace fastlstm::FASTLSTM_ISA
