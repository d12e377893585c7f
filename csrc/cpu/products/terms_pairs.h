// Multiplies pairs of bfloat16 by multiply-adds of float32, for targets without dot products of
// pairs. Included once for each such target.
#pragma once
#include "cpu/products/terms.h"

namespace fastlstm::FASTLSTM_ISA {

template <>
struct Terms<bfloat16> {
  static constexpr int at_once = 2;

  template <int count>
  FASTLSTM_INLINE static Vec<float> broadcast(const bfloat16* a) {
    uint32_t pair = a->bits;
    if constexpr (count == 2) std::memcpy(&pair, a, sizeof pair);
    return as_vector(Bits{} + pair);
  }
  FASTLSTM_INLINE static Vec<float> multiply_add(const Vec<float>& a, const Vec<float>& b,
                                                 const Vec<float>& sum) {
    return fused(second(a), second(b), fused(first(a), first(b), sum));
  }
  FASTLSTM_INLINE static Vec<float> load_first(const bfloat16* from, int64_t n) {
    bfloat16 pairs[2 * Vec<float>::lanes] = {};
    copy_few(from, n, pairs);
    return load_lanes<float>(pairs);
  }

 private:
  using Bits = Registers<float>::Bits;
  FASTLSTM_INLINE static Vec<float> as_vector(const Bits& bits) {
    Vec<float> x;
    std::memcpy(&x.v, &bits, sizeof x.v);
    return x;
  }
  FASTLSTM_INLINE static Bits bits_of(const Vec<float>& pairs) {
    Bits bits;
    std::memcpy(&bits, &pairs.v, sizeof bits);
    return bits;
  }
  FASTLSTM_INLINE static Vec<float> first(const Vec<float>& x) {
    return as_vector(bits_of(x) << 16);
  }
  FASTLSTM_INLINE static Vec<float> second(const Vec<float>& x) {
    return as_vector(bits_of(x) & 0xffff0000u);
  }
};

}  // namespace fastlstm::FASTLSTM_ISA
