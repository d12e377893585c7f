// AVX2 and FMA: 16 registers of 32 bytes.
#pragma once
#include <immintrin.h>

#include "cpu/targets/vec.h"

namespace fastlstm {
namespace FASTLSTM_ISA {

struct Target {
  // 6 x 2 sums, 2 vectors of the panel and a broadcast: 15 of the 16 registers.
  static constexpr int tile_rows = 6, tile_vectors = 2;
};

FASTLSTM_INLINE Vec<float> fused(const Vec<float>& x, const Vec<float>& y, const Vec<float>& sum) {
  return Vec<float>(_mm256_fmadd_ps(x.v, y.v, sum.v));
}
FASTLSTM_INLINE Vec<double> fused(const Vec<double>& x, const Vec<double>& y,
                                  const Vec<double>& sum) {
  return Vec<double>(_mm256_fmadd_pd(x.v, y.v, sum.v));
}

FASTLSTM_INLINE Vec<float> keep_in_register(Vec<float> x) {
  asm("" : "+x"(x.v));
  return x;
}
FASTLSTM_INLINE Vec<double> keep_in_register(Vec<double> x) {
  asm("" : "+x"(x.v));
  return x;
}

}  // namespace FASTLSTM_ISA
}  // namespace fastlstm
