// int8 by the dot product instructions of AVX_VNNI: laptops since 2021.
#if defined(__x86_64__)
#include "cpu/targets/begin.h"
FASTLSTM_TARGET("avx2,fma,avxvnni")
#define FASTLSTM_ISA avx_vnni
#define FASTLSTM_VECTOR_BYTES 32
#include "cpu/targets/avx2.h"
// Included after avx2.h, because tiles_int8.h uses its overloads.
#include "cpu/products/tiles_int8.h"
#include "cpu/targets/kernels.h"

namespace fastlstm::avx_vnni {

// The instruction multiplies unsigned by signed numbers, so rows are shifted up.
struct UnsignedDotProduct {
  static constexpr int32_t excess = kUnsigned;
  using Row = __m256i;
  FASTLSTM_INLINE static Row row(int32_t fours) { return _mm256_set1_epi32(fours); }
  FASTLSTM_INLINE static Fours add(const Row& a, Fours b, Fours sum) {
    return (Fours)_mm256_dpbusd_avx_epi32((__m256i)sum, a, (__m256i)b);
  }
};

const Product int8_weights =
    int8_product<Target::tile_rows, Target::tile_vectors, UnsignedDotProduct>();

}  // namespace fastlstm::avx_vnni
FASTLSTM_TARGET_END
#endif
