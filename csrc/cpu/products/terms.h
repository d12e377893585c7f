// How a tile takes the terms of a sum over k from rows of T: included once for each target.
#pragma once
#include "cpu/vec.h"

namespace fastlstm::FASTLSTM_ISA {

// How many neighbouring k lie in one lane of a panel (`at_once`): they are broadcast from a row
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
  Vec<A> x;
  std::memcpy(&x.v, from, sizeof x.v);
  return x;
}

}  // namespace fastlstm::FASTLSTM_ISA
