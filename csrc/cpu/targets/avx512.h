// AVX-512: 32 registers of 64 bytes, masks for ragged edges.
#pragma once
#include <immintrin.h>

#include "cpu/vec.h"

namespace fastlstm::FASTLSTM_ISA {

struct Target {
  // 6 x 4 sums, 4 vectors of the panel and a broadcast: 29 of the 32 registers.
  static constexpr int tile_rows = 6, tile_vectors = 4;
  static constexpr int int8_tile_rows = 4;
  static constexpr bool fetches_next_panels = true;
  static constexpr bool rows_of_16_bits = true;
};

FASTLSTM_INLINE uint32_t first_lanes(int64_t n) { return (1u << n) - 1; }

FASTLSTM_INLINE void load(const float* from, Vec<float>& x, int64_t n) {
  if (n == Vec<float>::lanes) return load(from, x);
  x.v = _mm512_maskz_loadu_ps(static_cast<__mmask16>(first_lanes(n)), from);
}
FASTLSTM_INLINE void load(const double* from, Vec<double>& x, int64_t n) {
  if (n == Vec<double>::lanes) return load(from, x);
  x.v = _mm512_maskz_loadu_pd(static_cast<__mmask8>(first_lanes(n)), from);
}
FASTLSTM_INLINE void store(const Vec<float>& x, float* to, int64_t n) {
  if (n == Vec<float>::lanes) return store(x, to);
  _mm512_mask_storeu_ps(to, static_cast<__mmask16>(first_lanes(n)), x.v);
}
FASTLSTM_INLINE void store(const Vec<double>& x, double* to, int64_t n) {
  if (n == Vec<double>::lanes) return store(x, to);
  _mm512_mask_storeu_pd(to, static_cast<__mmask8>(first_lanes(n)), x.v);
}

FASTLSTM_INLINE Vec<float> fused(const Vec<float>& x, const Vec<float>& y, const Vec<float>& sum) {
  return Vec<float>(_mm512_fmadd_ps(x.v, y.v, sum.v));
}
FASTLSTM_INLINE Vec<double> fused(const Vec<double>& x, const Vec<double>& y,
                                  const Vec<double>& sum) {
  return Vec<double>(_mm512_fmadd_pd(x.v, y.v, sum.v));
}

FASTLSTM_INLINE Vec<float> keep_in_register(Vec<float> x) {
  asm("" : "+v"(x.v));
  return x;
}
FASTLSTM_INLINE Vec<double> keep_in_register(Vec<double> x) {
  asm("" : "+v"(x.v));
  return x;
}

// If one of the two is a NaN, min and max return the second.
FASTLSTM_INLINE Vec<float> clamp(const Vec<float>& x, const Vec<float>& bound) {
  return Vec<float>(_mm512_min_ps(bound.v, _mm512_max_ps(-bound.v, x.v)));
}
FASTLSTM_INLINE Vec<double> clamp(const Vec<double>& x, const Vec<double>& bound) {
  return Vec<double>(_mm512_min_pd(bound.v, _mm512_max_pd(-bound.v, x.v)));
}

// One instruction in place of a shift and an addition.
template <int more>
FASTLSTM_INLINE Vec<float> power_of_two(const Vec<float>&, const Vec<float>& k) {
  return Vec<float>(_mm512_scalef_ps(Vec<float>(1 << more).v, k.v));
}
template <int more>
FASTLSTM_INLINE Vec<double> power_of_two(const Vec<double>&, const Vec<double>& k) {
  return Vec<double>(_mm512_scalef_pd(Vec<double>(1 << more).v, k.v));
}

FASTLSTM_INLINE void store_lowest_bytes(const Fours& x, void* to) {
  const __m128i bytes = _mm512_cvtepi32_epi8((__m512i)x);
  std::memcpy(to, &bytes, sizeof bytes);
}

// As in avx2.h, the sign as a mask.
struct DotProduct {
  static constexpr int32_t excess = 0;
  struct Row {
    __m512i magnitude;
    __mmask64 negative;
  };
  FASTLSTM_INLINE static Row row(int32_t fours) {
    const __m512i a = _mm512_set1_epi32(fours);
    return {_mm512_abs_epi8(a), _mm512_movepi8_mask(a)};
  }
  FASTLSTM_INLINE static Fours add(const Row& a, Fours b, Fours sum) {
    const __m512i terms = (__m512i)b;
    const __m512i of_sign = _mm512_mask_sub_epi8(terms, a.negative, _mm512_setzero_si512(), terms);
    const __m512i pairs = _mm512_maddubs_epi16(a.magnitude, of_sign);
    return sum + (Fours)_mm512_madd_epi16(pairs, _mm512_set1_epi16(1));
  }
};

}  // namespace fastlstm::FASTLSTM_ISA
