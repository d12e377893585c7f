// The target FEAT_DotProd of arm64: int8 by dot products of four.
#if defined(__aarch64__)
#include "cpu/targets/target_pragma.h"
FASTLSTM_TARGET("dotprod")
#define FASTLSTM_ISA neon_dotprod
#define FASTLSTM_VECTOR_BYTES 16
#include "cpu/targets/neon.h"

namespace fastlstm::neon_dotprod {

constexpr int32_t kZeroPoint = 0;
FASTLSTM_INLINE Int32Vec add_quads(const Int32Vec& a, Int8Quads b, Int32Vec sum) {
  return (Int32Vec)vdotq_s32((int32x4_t)sum, (int8x16_t)a, (int8x16_t)b);
}

}  // namespace fastlstm::neon_dotprod
#include "cpu/targets/int8_table.h"
FASTLSTM_TARGET_END
#endif
