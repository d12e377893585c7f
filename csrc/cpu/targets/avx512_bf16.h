// AVX512_BF16: dot products of pairs of bfloat16, summed in float32.
#pragma once
#include "cpu/products/terms.h"
#include "cpu/targets/avx512.h"

namespace fastlstm::FASTLSTM_ISA {

FASTLSTM_INLINE void load(const bfloat16* from, Vec<float>& x, int64_t n) {
  if (n == Vec<float>::lanes) return load(from, x);
  const __m256i half = _mm256_maskz_loadu_epi16(static_cast<__mmask16>(first_lanes(n)), from);
  load(reinterpret_cast<const bfloat16*>(&half), x);
}
FASTLSTM_INLINE void store(const Vec<float>& x, bfloat16* to) {  // rounds subnormal numbers to zero
  const __m256bh rounded = _mm512_cvtneps_pbh(x.v);
  std::memcpy(to, &rounded, sizeof rounded);
}
FASTLSTM_INLINE void store(const Vec<float>& x, bfloat16* to, int64_t n) {
  if (n == Vec<float>::lanes) return store(x, to);
  __m256i half;
  store(x, reinterpret_cast<bfloat16*>(&half));
  _mm256_mask_storeu_epi16(to, static_cast<__mmask16>(first_lanes(n)), half);
}

template <>
struct Terms<bfloat16> {
  static constexpr int at_once = 2;

  template <int count>
  FASTLSTM_INLINE static Vec<float> broadcast(const bfloat16* a) {
    uint32_t pair = a->bits;
    if constexpr (count == 2) std::memcpy(&pair, a, sizeof pair);
    return as_vector(_mm512_set1_epi32(static_cast<int>(pair)));
  }
  FASTLSTM_INLINE static Vec<float> multiply_add(const Vec<float>& a, const Vec<float>& b,
                                                 const Vec<float>& sum) {
    return Vec<float>(_mm512_dpbf16_ps(sum.v, (__m512bh)a.v, (__m512bh)b.v));
  }
  FASTLSTM_INLINE static Vec<float> load_first(const bfloat16* from, int64_t n) {
    return as_vector(_mm512_maskz_loadu_epi16((uint64_t(1) << n) - 1, from));
  }

 private:
  FASTLSTM_INLINE static Vec<float> as_vector(const __m512i& pairs) {
    Vec<float> x;
    std::memcpy(&x.v, &pairs, sizeof x.v);
    return x;
  }
};

}  // namespace fastlstm::FASTLSTM_ISA
