// How a tile takes the terms of a sum over k from rows of T: included once for each target.
#pragma once
#include "cpu/vec.h"

namespace fastlstm::FASTLSTM_ISA {

// How many neighboring k lie in one lane of a panel (`at_once`): they are broadcast from a row
// together and multiplied by one instruction. One here; targets with dot products of pairs have
// two.
template <typename T>
struct Terms {
  static constexpr int at_once = 1;

  template <int count>
  FASTLSTM_INLINE static Vec<T> broadcast(const T* a) {
    return Vec<T>(*a);
  }
  FASTLSTM_INLINE static Vec<T> multiply_add(const Vec<T>& a, const Vec<T>& b, const Vec<T>& sum) {
    return fused(a, b, sum);
  }
  // The first n elements of `from`; the others are zero.
  FASTLSTM_INLINE static Vec<T> load_first(const T* from, int64_t n) {
    Vec<T> x;
    load(from, x, n);
    return x;
  }
};

// A vector of a panel or of a row.
template <typename A, typename T>
FASTLSTM_INLINE Vec<A> load_lanes(const T* from) {
  return Vec<A>(read<typename Vec<A>::Native>(from));
}

// Pairs of bfloat16 by multiply-adds of float32. A target with dot products of pairs overloads
// the next two functions before.

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
