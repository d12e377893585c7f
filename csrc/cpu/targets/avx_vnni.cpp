// The target AVX_VNNI, which laptops have since 2021: int8 by dot products of four.
#if defined(__x86_64__)
#include "cpu/targets/target_pragma.h"
FASTLSTM_TARGET("avx2,fma,f16c,avxvnni")
#define FASTLSTM_ISA avx_vnni
#define FASTLSTM_VECTOR_BYTES 32
#include "cpu/targets/avx2.h"

namespace fastlstm::avx_vnni {

constexpr int32_t kZeroPoint = 128;  // makes rows unsigned, as the instruction takes them
FASTLSTM_INLINE Int32Vec add_quads(const Int32Vec& a, Int8Quads b, Int32Vec sum) {
  return (Int32Vec)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)a, (__m256i)b);
}

}  // namespace fastlstm::avx_vnni
#include "cpu/targets/int8_table.h"
FASTLSTM_TARGET_END
#endif
