// The kernels for int8. A target that has dot products of four includes this file once, after it
// has declared add_quads and kZeroPoint.
#pragma once
#include "cpu/products/int8_tiles.h"
#include "cpu/targets/kernels.h"

namespace fastlstm::FASTLSTM_ISA {

// See PlainDotProduct (vec.h).
struct DotProductOfQuads {
  static constexpr int32_t zero_point = kZeroPoint;
  using Row = Int32Vec;
  FASTLSTM_INLINE static Row row(int32_t quad) { return Int32Vec{} + quad; }
  FASTLSTM_INLINE static Int32Vec add(const Row& a, Int8Quads b, Int32Vec sum) {
    return add_quads(a, b, sum);
  }
};

const GemmKernels int8_gemm =
    make_int8_gemm<Target::tile_rows, Target::tile_vectors, DotProductOfQuads>();

}  // namespace fastlstm::FASTLSTM_ISA
