// bfloat16 by the dot products of pairs of arm64 (FEAT_BF16), summed in float32. Unless the system
// sets it otherwise, they round to odd and flush subnormal numbers to zero.
#if defined(__aarch64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("bf16"))), apply_to = function)
#else
#pragma GCC target("+bf16")
#endif
#define FASTLSTM_ISA neon_bf16
#define FASTLSTM_VECTOR_BYTES 16
#include "cpu/products/terms.h"
#include "cpu/targets/neon.h"

namespace fastlstm::neon_bf16 {

FASTLSTM_INLINE void store(const Vec<float>& x, bfloat16* to) {
  const bfloat16x4_t rounded = vcvt_bf16_f32(x.v);
  std::memcpy(to, &rounded, sizeof rounded);
}

template <>
struct Terms<bfloat16> {
  static constexpr int at_once = 2;

  template <int count>
  FASTLSTM_INLINE static Vec<float> broadcast(const bfloat16* a) {
    uint32_t pair = a->bits;
    if constexpr (count == 2) std::memcpy(&pair, a, sizeof pair);
    return Vec<float>(vreinterpretq_f32_u32(vdupq_n_u32(pair)));
  }
  FASTLSTM_INLINE static Vec<float> multiply_add(const Vec<float>& a, const Vec<float>& b,
                                                 const Vec<float>& sum) {
    return Vec<float>(vbfdotq_f32(sum.v, (bfloat16x8_t)a.v, (bfloat16x8_t)b.v));
  }
  FASTLSTM_INLINE static Vec<float> load_first(const bfloat16* from, int64_t n) {
    bfloat16 pairs[2 * Vec<float>::lanes] = {};
    copy_few(from, n, pairs);
    return load_lanes<float>(pairs);
  }
};

}  // namespace fastlstm::neon_bf16
//
#include "cpu/cell/cell_kernels.h"
#include "cpu/products/tile_product.h"
#include "cpu/targets/kernels.h"

namespace fastlstm::neon_bf16 {

const Product<bfloat16> product =
    with_rounding(tile_product<Target::tile_rows, Target::tile_vectors, bfloat16, float>());
const Cell<bfloat16> cell = {prefetch_forward<bfloat16>, prefetch_backward<bfloat16>,
                             forward_cells<bfloat16, float>, backward_cells<bfloat16, float>};

}  // namespace fastlstm::neon_bf16
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
