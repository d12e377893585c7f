// The target AVX512_VNNI: int8 by dot products of four.
#if defined(__x86_64__)
#include "cpu/targets/target_pragma.h"
FASTLSTM_TARGET("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")
#define FASTLSTM_ISA avx512_vnni
#define FASTLSTM_VECTOR_BYTES 64
#include "cpu/targets/avx512.h"

namespace fastlstm::avx512_vnni {

constexpr int32_t kZeroPoint = 128;  // makes rows unsigned, as the instruction takes them
FASTLSTM_INLINE Int32Vec add_quads(const Int32Vec& a, Int8Quads b, Int32Vec sum) {
  return (Int32Vec)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)a, (__m512i)b);
}

}  // namespace fastlstm::avx512_vnni
#include "cpu/targets/int8_table.h"
FASTLSTM_TARGET_END
#endif
