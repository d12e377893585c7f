// The target FEAT_BF16 of arm64: bfloat16 by dot products of pairs, which are summed in float32.
// By default these instructions round to odd and flush subnormal numbers to zero.
#if defined(__aarch64__)
#include "cpu/targets/target_pragma.h"
FASTLSTM_TARGET("bf16")
#define FASTLSTM_ISA neon_bf16
#define FASTLSTM_VECTOR_BYTES 16
#include "cpu/targets/neon.h"

namespace fastlstm::neon_bf16 {

FASTLSTM_INLINE void store(const Vec<float>& x, bfloat16* to) {
  const bfloat16x4_t rounded = vcvt_bf16_f32(x.v);
  std::memcpy(to, &rounded, sizeof rounded);
}
FASTLSTM_INLINE Vec<float> add_pairs(const Vec<float>& a, const Vec<float>& b,
                                     const Vec<float>& sum) {
  return Vec<float>(vbfdotq_f32(sum.v, (bfloat16x8_t)a.v, (bfloat16x8_t)b.v));
}

}  // namespace fastlstm::neon_bf16
#include "cpu/targets/bfloat16_table.h"
FASTLSTM_TARGET_END
#endif
