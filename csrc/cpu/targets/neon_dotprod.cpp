// int8 by the dot product instructions of arm64 (FEAT_DotProd).
#if defined(__aarch64__)
#include "cpu/targets/begin.h"
FASTLSTM_TARGET("dotprod")
#define FASTLSTM_ISA neon_dotprod
#define FASTLSTM_VECTOR_BYTES 16
#include "cpu/targets/neon.h"
// Included after neon.h, because tiles_int8.h uses its overloads.
#include "cpu/products/tiles_int8.h"
#include "cpu/targets/kernels.h"

namespace fastlstm::neon_dotprod {

struct SignedDotProduct {
  static constexpr int32_t excess = 0;
  using Row = int8x16_t;
  FASTLSTM_INLINE static Row row(int32_t fours) { return (Row)vdupq_n_s32(fours); }
  FASTLSTM_INLINE static Fours add(const Row& a, Fours b, Fours sum) {
    return (Fours)vdotq_s32((int32x4_t)sum, a, (int8x16_t)b);
  }
};

const Product int8_weights =
    int8_product<Target::tile_rows, Target::tile_vectors, SignedDotProduct>();

}  // namespace fastlstm::neon_dotprod
FASTLSTM_TARGET_END
#endif
