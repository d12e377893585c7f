// bfloat16 and float16 on the host. Conversions round to nearest, ties to even, and give the same
// bits as in PyTorch. They have no branch and no library call, so loops over them vectorize on any
// instruction set. The template types Bits and Float are uint32_t and float, or vectors of these.
#pragma once
#include "../equations/elementary.h"

namespace fastlstm {

// Convert the bits of a float to the bits of a 16-bit type, in the lower half of the result.
template <typename Bits>
FASTLSTM_INLINE Bits bfloat16_bits(const Bits& b) {
  const Bits rounded = (b + 0x7fff + ((b >> 16) & 1)) >> 16;
  return (b & 0x7fffffff) > 0x7f800000 ? Bits{} + 0x7fc0 : rounded;
}
template <typename Float, typename Bits>
FASTLSTM_INLINE Bits float16_bits(const Bits& b) {
  const Bits sign = (b >> 16) & 0x8000, a = b & 0x7fffffff;
  // Adding 0.5f rounds a subnormal result to a multiple of 2^-24, the last place of 0.5f.
  const Bits subnormal = bits_as<Bits>(bits_as<Float>(a) + 0.5f) - bits_as<uint32_t>(0.5f);
  const Bits normal = (a - (uint32_t(127 - 15) << 23) + 0xfff + ((a >> 13) & 1)) >> 13;
  Bits r = a < 0x38800000 ? subnormal : normal;
  r = a >= 0x477ff000 ? Bits{} + 0x7c00 : r;  // 65520 and above round to infinity
  r = a > 0x7f800000 ? Bits{} + 0x7e00 : r;   // NaN
  return sign | r;
}
template <typename Float, typename Bits>
FASTLSTM_INLINE Float from_float16(const Bits& bits) {
  const Bits a = bits & 0x7fff;
  // The factor corrects the bias of the exponent, also for subnormal numbers.
  const Float scaled = bits_as<Float>(a << 13) * 0x1p112f;
  const Bits special = a >= 0x7c00 ? Bits{} + 0x7f800000 : Bits{};
  return bits_as<Float>((bits & 0x8000) << 16 | special | bits_as<Bits>(scaled));
}

struct bfloat16 {
  uint16_t bits;
  bfloat16() = default;
  FASTLSTM_INLINE explicit bfloat16(float x) : bits(bfloat16_bits(bits_as<uint32_t>(x))) {}
  FASTLSTM_INLINE explicit operator float() const { return bits_as<float>(uint32_t(bits) << 16); }
};

struct float16 {
  uint16_t bits;
  float16() = default;
  FASTLSTM_INLINE explicit float16(float x) : bits(float16_bits<float>(bits_as<uint32_t>(x))) {}
  FASTLSTM_INLINE explicit operator float() const { return from_float16<float>(uint32_t(bits)); }
};

}  // namespace fastlstm
