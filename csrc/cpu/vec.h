// Vec<A>: a vector register of float or double as a value, for the cell equations (lstm_math.h) and
// the micro-kernels. It uses the vector extensions of GCC and Clang. Included once for each target,
// which first defines FASTLSTM_ISA (the target's namespace) and FASTLSTM_VECTOR_BYTES, and
// overloads functions of this file for which it has better instructions.
#pragma once
#include "cpu/half.h"

namespace fastlstm::FASTLSTM_ISA {

// Reads a value from memory of any type and alignment.
template <typename To>
FASTLSTM_INLINE To read(const void* from) {
  To x;
  std::memcpy(&x, from, sizeof x);
  return x;
}

// Like std::min, which is not always inline (csrc/README.md, "Rules").
FASTLSTM_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

template <typename A>
struct Registers {
  typedef typename elementary::Constants<A>::Bits UInt;
  typedef A Native __attribute__((vector_size(FASTLSTM_VECTOR_BYTES)));
  typedef UInt Bits __attribute__((vector_size(FASTLSTM_VECTOR_BYTES)));
};

template <typename A>
struct Vec {
  static constexpr int lanes = FASTLSTM_VECTOR_BYTES / sizeof(A);
  using Native = typename Registers<A>::Native;
  Native v;

  Vec() = default;
  FASTLSTM_INLINE explicit Vec(Native native) : v(native) {}
  FASTLSTM_INLINE explicit Vec(A x) : v(x - Native{}) {}  // x in every lane

  FASTLSTM_INLINE static Vec load(const void* from) { return Vec(read<Native>(from)); }
  FASTLSTM_INLINE void store(A* to) const { std::memcpy(to, &v, sizeof v); }
};

// Load and store a vector. A load widens bfloat16 and float16 to float, and a store rounds to them.
template <typename A>
FASTLSTM_INLINE void load(const A* from, Vec<A>& x) {
  x = Vec<A>::load(from);
}
template <typename A>
FASTLSTM_INLINE void store(const Vec<A>& x, A* to) {
  x.store(to);
}

// A vector of 16-bit elements, as many as Vec<float> has lanes. load_halves widens each element to
// 32 bits with zeros in the upper half; store_halves stores the lower halves.
typedef uint16_t HalfRegister __attribute__((vector_size(FASTLSTM_VECTOR_BYTES / 2)));
using FloatBits = Registers<float>::Bits;

FASTLSTM_INLINE FloatBits load_halves(const void* from) {
  return __builtin_convertvector(read<HalfRegister>(from), FloatBits);
}
FASTLSTM_INLINE void store_halves(const FloatBits& x, void* to) {
  const HalfRegister half = __builtin_convertvector(x, HalfRegister);
  std::memcpy(to, &half, sizeof half);
}
FASTLSTM_INLINE void load(const bfloat16* from, Vec<float>& x) {
  x.v = bits_as<Vec<float>::Native>(load_halves(from) << 16);
}
template <typename A>
FASTLSTM_INLINE void store(const Vec<A>& x, bfloat16* to) {
  store_halves(bfloat16_bits(bits_as<FloatBits>(x.v)), to);
}
template <typename A>
FASTLSTM_INLINE void load(const float16* from, Vec<A>& x) {
  x.v = from_float16<typename Vec<A>::Native>(load_halves(from));
}
FASTLSTM_INLINE void store(const Vec<float>& x, float16* to) {
  store_halves(float16_bits<Vec<float>::Native>(bits_as<FloatBits>(x.v)), to);
}

// Copies n elements. The compiler would turn a plain loop into a call of memcpy, and because of the
// call it would keep the sums of a tile on the stack during the whole product.
template <typename T>
FASTLSTM_INLINE void copy_few(const T* from, int64_t n, T* to) {
#pragma GCC unroll 1
  for (int64_t l = 0; l < n; ++l) {
    to[l] = from[l];
    asm volatile("");
  }
}

// Load and store only the first n lanes. A load sets the other lanes to zero.
template <typename T, typename A>
FASTLSTM_INLINE void load(const T* from, Vec<A>& x, int64_t n) {
  if (n == Vec<A>::lanes) return load(from, x);
  T lanes[Vec<A>::lanes] = {};
  copy_few(from, n, lanes);
  load(lanes, x);
}
template <typename T, typename A>
FASTLSTM_INLINE void store(const Vec<A>& x, T* to, int64_t n) {
  if (n == Vec<A>::lanes) return store(x, to);
  T lanes[Vec<A>::lanes];
  store(x, lanes);
  copy_few(lanes, n, to);
}

#define FASTLSTM_VEC_OPERATOR(op)                                        \
  template <typename A>                                                  \
  FASTLSTM_INLINE Vec<A> operator op(const Vec<A>& a, const Vec<A>& b) { \
    return Vec<A>(a.v op b.v);                                           \
  }
FASTLSTM_VEC_OPERATOR(+)
FASTLSTM_VEC_OPERATOR(-)
FASTLSTM_VEC_OPERATOR(*)
FASTLSTM_VEC_OPERATOR(/)
#undef FASTLSTM_VEC_OPERATOR
template <typename A>
FASTLSTM_INLINE Vec<A> operator-(const Vec<A>& a) {
  return Vec<A>(-a.v);
}

typedef int32_t Int32Vec __attribute__((vector_size(FASTLSTM_VECTOR_BYTES)));
using Int8Quads = Int32Vec;  // each lane holds four int8: neighboring elements of a column

// Stores the lowest byte of each lane. Targets overload it, since GCC moves the bytes one by one.
template <typename Ints>
FASTLSTM_INLINE void store_lowest_bytes(const Ints& x, void* to) {
  typedef int8_t Bytes __attribute__((vector_size(sizeof(Ints) / 4)));
  const Bytes bytes = __builtin_convertvector(x, Bytes);
  std::memcpy(to, &bytes, sizeof bytes);
}

// Adds dot products of four int8 to sums. Every lane of b is multiplied by the same four elements
// of a row. Targets have their own versions, whose Row is in the form that the instruction takes.
struct PlainDotProduct {
  static constexpr int32_t zero_point = 0;  // added to the elements of an encoded row
  using Row = int32_t;
  FASTLSTM_INLINE static Row row(int32_t quad) { return quad; }
  FASTLSTM_INLINE static Int32Vec add(Row a, Int8Quads b, Int32Vec sum) {
    for (int byte = 0; byte < 4; ++byte)
      sum += (b << (24 - 8 * byte) >> 24) * static_cast<int8_t>(a >> 8 * byte);
    return sum;
  }
};

// Keeps a vector in a register. The compiler would load it again for every row of a tile.
template <typename A>
FASTLSTM_INLINE Vec<A> keep_in_register(Vec<A> x) {
#if defined(FASTLSTM_REGISTER)  // the target's asm constraint for vector registers
  asm("" : FASTLSTM_REGISTER(x.v));
#endif
  return x;
}

// Returns a vector whose lane j is lane index[j] of a followed by b.
template <typename Native, typename Bits>
FASTLSTM_INLINE Native shuffle(const Native& a, const Native& b, const Bits& index) {
#if defined(__clang__)
  constexpr int lanes = sizeof(Native) / sizeof(a[0]);
  Native x;
  for (int j = 0; j < lanes; ++j) x[j] = index[j] < lanes ? a[index[j]] : b[index[j] - lanes];
  return x;
#else
  return __builtin_shuffle(a, b, index);
#endif
}

template <typename A>
FASTLSTM_INLINE Vec<A> clamp(const Vec<A>& x, const Vec<A>& bound) {  // a NaN stays a NaN
  const typename Vec<A>::Native low = -bound.v;
  const typename Vec<A>::Native raised = x.v < low ? low : x.v;
  return Vec<A>(raised > bound.v ? bound.v : raised);
}

template <int exponent_offset, typename A>  // overloads power_of_two of elementary.h
FASTLSTM_INLINE Vec<A> power_of_two(const Vec<A>& shifted, const Vec<A>&) {
  using C = elementary::Constants<A>;
  const auto bits = bits_as<typename Registers<A>::Bits>(shifted.v) << C::mantissa_bits;
  return Vec<A>(bits_as<typename Vec<A>::Native>(
      bits + ((C::exponent_bias + exponent_offset) << C::mantissa_bits)));
}

template <typename A>
FASTLSTM_INLINE Vec<A> sigmoid(const Vec<A>& x) {
  return elementary::sigmoid<elementary::Constants<A>>(x);
}
template <typename A>
FASTLSTM_INLINE Vec<A> tanh(const Vec<A>& x) {
  return elementary::tanh<elementary::Constants<A>>(x);
}

}  // namespace fastlstm::FASTLSTM_ISA
