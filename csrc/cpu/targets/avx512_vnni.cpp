// The target AVX512_VNNI: int8 by dot products of four.
#if defined(__x86_64__)
#include "cpu/targets/target_pragma.h"
FASTLSTM_TARGET("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")
#define FASTLSTM_ISA avx512_vnni
#define FASTLSTM_VECTOR_BYTES 64
#include "cpu/targets/avx512.h"
// Included after avx512.h, because int8_tiles.h uses its overloads.
#include "cpu/products/int8_tiles.h"
#include "cpu/targets/kernels.h"

namespace fastlstm::avx512_vnni {

// The instruction takes unsigned rows and signed weights, so rows have a zero point.
struct UnsignedDotProduct {
  static constexpr int32_t zero_point = kUnsignedZeroPoint;
  using Row = __m512i;
  FASTLSTM_INLINE static Row row(int32_t quad) { return _mm512_set1_epi32(quad); }
  FASTLSTM_INLINE static Int32Vec add(const Row& a, Int8Quads b, Int32Vec sum) {
    return (Int32Vec)_mm512_dpbusd_epi32((__m512i)sum, a, (__m512i)b);
  }
};

const GemmKernels int8_gemm =
    make_int8_gemm<Target::tile_rows, Target::tile_vectors, UnsignedDotProduct>();

}  // namespace fastlstm::avx512_vnni
FASTLSTM_TARGET_END
#endif
