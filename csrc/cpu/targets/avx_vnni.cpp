// The target AVX_VNNI, which laptops have since 2021: int8 by dot products of four.
#if defined(__x86_64__)
#include "cpu/targets/target_pragma.h"
FASTLSTM_TARGET("avx2,fma,avxvnni")
#define FASTLSTM_ISA avx_vnni
#define FASTLSTM_VECTOR_BYTES 32
#include "cpu/targets/avx2.h"
// Included after avx2.h, because int8_tiles.h uses its overloads.
#include "cpu/products/int8_tiles.h"
#include "cpu/targets/kernels.h"

namespace fastlstm::avx_vnni {

// The instruction takes unsigned rows and signed weights, so rows have a zero point.
struct UnsignedDotProduct {
  static constexpr int32_t zero_point = kUnsignedZeroPoint;
  using Row = __m256i;
  FASTLSTM_INLINE static Row row(int32_t quad) { return _mm256_set1_epi32(quad); }
  FASTLSTM_INLINE static Int32Vec add(const Row& a, Int8Quads b, Int32Vec sum) {
    return (Int32Vec)_mm256_dpbusd_avx_epi32((__m256i)sum, a, (__m256i)b);
  }
};

const GemmKernels int8_gemm =
    make_int8_gemm<Target::tile_rows, Target::tile_vectors, UnsignedDotProduct>();

}  // namespace fastlstm::avx_vnni
FASTLSTM_TARGET_END
#endif
