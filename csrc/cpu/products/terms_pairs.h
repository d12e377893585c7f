// Multiplies pairs of bfloat16. Included once for each target; one with instructions for it
// overloads the two functions before.
#pragma once
#include "cpu/products/terms.h"

namespace fastlstm::FASTLSTM_ISA {

// sum + the products of the first elements of the pairs + those of the second.
template <typename A>
FASTLSTM_INLINE Vec<A> add_pairs(const Vec<A>& a, const Vec<A>& b, const Vec<A>& sum) {
  using Bits = typename Registers<A>::Bits;
  const auto as_vector = [](Bits bits) { return Vec<A>(bits_as<typename Vec<A>::Native>(bits)); };
  const auto first = [&](const Vec<A>& x) { return as_vector(bits_as<Bits>(x.v) << 16); };
  const auto second = [&](const Vec<A>& x) { return as_vector(bits_as<Bits>(x.v) & 0xffff0000u); };
  return fused(second(a), second(b), fused(first(a), first(b), sum));
}

// The first n of the elements of a vector of pairs; the others are zero.
template <typename T>
FASTLSTM_INLINE Vec<float> load_pairs(const T* from, int64_t n) {
  T pairs[2 * Vec<float>::lanes] = {};
  copy_few(from, n, pairs);
  return load_lanes<float>(pairs);
}

template <>
struct Terms<bfloat16> {
  static constexpr int at_once = 2;

  template <int count>
  FASTLSTM_INLINE static Vec<float> broadcast(const bfloat16* a) {
    const uint32_t pair = count == 2 ? read<uint32_t>(a) : a->bits;
    return Vec<float>(bits_as<Vec<float>::Native>(Registers<float>::Bits{} + pair));
  }
  FASTLSTM_INLINE static Vec<float> multiply_add(const Vec<float>& a, const Vec<float>& b,
                                                 const Vec<float>& sum) {
    return add_pairs(a, b, sum);
  }
  FASTLSTM_INLINE static Vec<float> load_first(const bfloat16* from, int64_t n) {
    return load_pairs(from, n);
  }
};

}  // namespace fastlstm::FASTLSTM_ISA
