// The target AVX512_BF16: bfloat16 by dot products of pairs, which are summed in float32.
#if defined(__x86_64__)
#include "cpu/targets/target_pragma.h"
FASTLSTM_TARGET("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")
#define FASTLSTM_ISA avx512_bf16
#define FASTLSTM_VECTOR_BYTES 64
#include "cpu/targets/avx512.h"

namespace fastlstm::avx512_bf16 {

FASTLSTM_INLINE void load(const bfloat16* from, Vec<float>& x, int64_t n) {
  if (n == Vec<float>::lanes) return load(from, x);
  const __m256i values = _mm256_maskz_loadu_epi16(static_cast<__mmask16>(first_lanes(n)), from);
  load(reinterpret_cast<const bfloat16*>(&values), x);
}
FASTLSTM_INLINE void store(const Vec<float>& x, bfloat16* to) {  // rounds subnormal numbers to zero
  const __m256bh rounded = _mm512_cvtneps_pbh(x.v);
  std::memcpy(to, &rounded, sizeof rounded);
}
FASTLSTM_INLINE void store(const Vec<float>& x, bfloat16* to, int64_t n) {
  if (n == Vec<float>::lanes) return store(x, to);
  __m256i values;
  store(x, reinterpret_cast<bfloat16*>(&values));
  _mm256_mask_storeu_epi16(to, static_cast<__mmask16>(first_lanes(n)), values);
}

FASTLSTM_INLINE Vec<float> add_pairs(const Vec<float>& a, const Vec<float>& b,
                                     const Vec<float>& sum) {
  return Vec<float>(_mm512_dpbf16_ps(sum.v, (__m512bh)a.v, (__m512bh)b.v));
}
FASTLSTM_INLINE Vec<float> load_pairs(const bfloat16* from, int64_t n) {
  return Vec<float>((__m512)_mm512_maskz_loadu_epi16((uint64_t(1) << n) - 1, from));
}

}  // namespace fastlstm::avx512_bf16
#include "cpu/targets/bfloat16_table.h"
FASTLSTM_TARGET_END
#endif
