// NEON, which every arm64 processor has: 32 registers of 16 bytes.
#pragma once
#include <arm_neon.h>

#define FASTLSTM_REGISTER "+w"
#include "cpu/vec.h"

namespace fastlstm::FASTLSTM_ISA {

struct Target {
  // 5 x 4 sums, 4 vectors of the panel and 5 elements of rows, which GCC loads in advance: 29 of 32
  // registers. With 6 x 4 sums GCC would keep two of them on the stack.
  static constexpr int tile_rows = 5, tile_vectors = 4;
  static constexpr int int8_tile_rows = 4;
  static constexpr bool has_16_bit_row_kernels = true;
};

// Overloads of functions of vec.h. In clamp a NaN stays a NaN, because min and max return it.
#define FASTLSTM_OVERLOADS(A, suffix)                                                 \
  FASTLSTM_INLINE Vec<A> fused(const Vec<A>& x, const Vec<A>& y, const Vec<A>& sum) { \
    return Vec<A>(vfmaq_##suffix(sum.v, x.v, y.v));                                   \
  }                                                                                   \
  FASTLSTM_INLINE Vec<A> clamp(const Vec<A>& x, const Vec<A>& bound) {                \
    return Vec<A>(vminq_##suffix(bound.v, vmaxq_##suffix(-bound.v, x.v)));            \
  }
FASTLSTM_OVERLOADS(float, f32)
FASTLSTM_OVERLOADS(double, f64)
#undef FASTLSTM_OVERLOADS

FASTLSTM_INLINE void store_lowest_bytes(const Int32Vec& x, void* to) {
  const int16x4_t pairs = vmovn_s32((int32x4_t)x);
  const int8x8_t bytes = vmovn_s16(vcombine_s16(pairs, pairs));
  std::memcpy(to, &bytes, 4);
}

// See PlainDotProduct (vec.h). The sum of two products of numbers up to 127 fits into 16 bits.
struct DotProduct {
  static constexpr int32_t zero_point = 0;
  using Row = int8x16_t;
  FASTLSTM_INLINE static Row row(int32_t quad) { return (Row)vdupq_n_s32(quad); }
  FASTLSTM_INLINE static Int32Vec add(const Row& a, Int8Quads b, Int32Vec sum) {
    const int8x16_t terms = (int8x16_t)b;
    const int16x8_t low = vmull_s8(vget_low_s8(a), vget_low_s8(terms));
    const int16x8_t high = vmull_high_s8(a, terms);
    return (Int32Vec)vpadalq_s16((int32x4_t)sum, vpaddq_s16(low, high));
  }
};

}  // namespace fastlstm::FASTLSTM_ISA
