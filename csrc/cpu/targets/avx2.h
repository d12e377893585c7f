// AVX2 and FMA: 16 registers of 32 bytes.
#pragma once
#include <immintrin.h>

#define FASTLSTM_REGISTER "+x"
#include "cpu/vec.h"

namespace fastlstm::FASTLSTM_ISA {

struct Target {
  // 6 x 2 sums, 2 vectors of the panel and a broadcast: 15 of the 16 registers.
  static constexpr int tile_rows = 6, tile_vectors = 2;
  static constexpr int int8_tile_rows = 4;  // each row of int8 takes two registers
  static constexpr bool has_16_bit_row_kernels = false;
};

FASTLSTM_INLINE Vec<float> fused(const Vec<float>& x, const Vec<float>& y, const Vec<float>& sum) {
  return Vec<float>(_mm256_fmadd_ps(x.v, y.v, sum.v));
}
FASTLSTM_INLINE Vec<double> fused(const Vec<double>& x, const Vec<double>& y,
                                  const Vec<double>& sum) {
  return Vec<double>(_mm256_fmadd_pd(x.v, y.v, sum.v));
}

FASTLSTM_INLINE void load(const float16* from, Vec<float>& x) {
  x.v = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}
FASTLSTM_INLINE void store_lowest_bytes(const Int32Vec& x, void* to) {
  const __m256i to_front = _mm256_broadcastsi128_si256(_mm_setr_epi32(0x0c080400, -1, -1, -1));
  const __m256i quads = _mm256_shuffle_epi8((__m256i)x, to_front);
  const __m128i bytes =
      _mm_unpacklo_epi32(_mm256_castsi256_si128(quads), _mm256_extracti128_si256(quads, 1));
  std::memcpy(to, &bytes, 8);
}

// See PlainDotProduct (vec.h). The instruction takes unsigned rows, so the signs of the row are
// moved to the weights. The sum of two products of numbers up to 127 fits into 16 bits.
struct DotProduct {
  static constexpr int32_t zero_point = 0;
  struct Row {
    __m256i magnitude, sign;
  };
  FASTLSTM_INLINE static Row row(int32_t quad) {
    const __m256i a = _mm256_set1_epi32(quad);
    return {_mm256_abs_epi8(a), a};
  }
  FASTLSTM_INLINE static Int32Vec add(const Row& a, Int8Quads b, Int32Vec sum) {
    const __m256i pairs = _mm256_maddubs_epi16(a.magnitude, _mm256_sign_epi8((__m256i)b, a.sign));
    return sum + (Int32Vec)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
  }
};

}  // namespace fastlstm::FASTLSTM_ISA
