// The two 16-bit types on the host, bit for bit those of PyTorch, with conversions that have no
// branch and no library call, so that loops over them vectorise on any instruction set.
#pragma once
#include <cstdint>
#include <cstring>

#include "../equations/elementary.h"

namespace fastlstm {

FASTLSTM_INLINE uint32_t float_bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

FASTLSTM_INLINE float bits_float(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

struct bfloat16 {
  uint16_t bits;
  bfloat16() = default;
  FASTLSTM_INLINE explicit bfloat16(float x) {  // round to nearest, ties to even
    const uint32_t b = float_bits(x);
    const uint32_t rounded = (b + 0x7fff + ((b >> 16) & 1)) >> 16;
    bits = static_cast<uint16_t>((b & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded);
  }
  FASTLSTM_INLINE explicit operator float() const { return bits_float(uint32_t(bits) << 16); }
};

struct float16 {
  uint16_t bits;
  float16() = default;
  FASTLSTM_INLINE explicit float16(float x) {  // round to nearest, ties to even
    const uint32_t b = float_bits(x), sign = (b >> 16) & 0x8000, a = b & 0x7fffffff;
    // Below 2^-14 the result is subnormal: 0.5f has just its unit in the last place, 2^-24.
    const uint32_t subnormal = float_bits(bits_float(a) + 0.5f) - float_bits(0.5f);
    const uint32_t normal = (a - (uint32_t(127 - 15) << 23) + 0xfff + ((a >> 13) & 1)) >> 13;
    uint32_t r = a < 0x38800000 ? subnormal : normal;
    r = a >= 0x477ff000 ? 0x7c00 : r;  // 65520 and above round to infinity
    r = a > 0x7f800000 ? 0x7e00 : r;   // NaN
    bits = static_cast<uint16_t>(sign | r);
  }
  FASTLSTM_INLINE explicit operator float() const {
    const uint32_t a = bits & 0x7fff, sign = uint32_t(bits & 0x8000) << 16;
    const float scaled = bits_float(a << 13) * 0x1p112f;  // rebias; right for subnormals too
    const uint32_t special = a >= 0x7c00 ? 0x7f800000 : 0;
    return bits_float(sign | special | float_bits(scaled));
  }
};

}  // namespace fastlstm
