// The target FEAT_DotProd of arm64: int8 by dot products of four.
#if defined(__aarch64__)
#include "cpu/targets/target_pragma.h"
FASTLSTM_TARGET("dotprod")
#define FASTLSTM_ISA neon_dotprod
#define FASTLSTM_VECTOR_BYTES 16
#include "cpu/targets/neon.h"
// Included after neon.h, because int8_tiles.h uses its overloads.
#include "cpu/products/int8_tiles.h"
#include "cpu/targets/kernels.h"

namespace fastlstm::neon_dotprod {

struct SignedDotProduct {
  static constexpr int32_t zero_point = 0;
  using Row = int8x16_t;
  FASTLSTM_INLINE static Row row(int32_t quad) { return (Row)vdupq_n_s32(quad); }
  FASTLSTM_INLINE static Int32Vec add(const Row& a, Int8Quads b, Int32Vec sum) {
    return (Int32Vec)vdotq_s32((int32x4_t)sum, a, (int8x16_t)b);
  }
};

const GemmKernels int8_gemm =
    make_int8_gemm<Target::tile_rows, Target::tile_vectors, SignedDotProduct>();

}  // namespace fastlstm::neon_dotprod
FASTLSTM_TARGET_END
#endif
