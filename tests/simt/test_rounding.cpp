// The conversions of the 16-bit types in csrc/cpu/half.h, compiled as plain C++.
#include "harness.h"

namespace {

using testing::Case;
using testing::check;

// Checks that every 16-bit value survives a round trip through float, and that a float is rounded
// to the nearest 16-bit value, with ties to even.
template <typename H>
void check_rounding(int mantissa_bits, uint32_t infinity) {
  const auto value = [](uint32_t bits) {
    H h;
    h.bits = static_cast<uint16_t>(bits);
    return static_cast<float>(h);
  };
  for (uint32_t bits = 0; bits <= infinity; ++bits)
    for (uint32_t sign : {0u, 0x8000u})
      check(H(value(bits | sign)).bits == (bits | sign), "round trip of ", bits | sign);
  for (uint32_t bits = 0; bits + 1 < infinity; ++bits) {
    const double low = value(bits), high = value(bits + 1), middle = (low + high) / 2;
    const auto rounded = [](double x) { return H(static_cast<float>(x)).bits; };
    check(rounded(middle) == (bits % 2 ? bits + 1 : bits), "tie above ", bits);
    check(rounded(low + (high - low) * 0.49) == bits, "just below the middle above ", bits);
    check(rounded(low + (high - low) * 0.51) == bits + 1, "just above the middle above ", bits);
  }
  check(std::isnan(static_cast<float>(H(std::nanf("")))), "NaN");
  const float next = value(infinity - 1) * (1 + std::ldexp(1.0f, -mantissa_bits));
  check(H(next).bits == infinity, "overflow to infinity");
}
const Case rounding_b("rounding/bfloat16 rounds to nearest",
                      [] { check_rounding<fastlstm::bfloat16>(7, 0x7f80); });
const Case rounding_h("rounding/float16 rounds to nearest",
                      [] { check_rounding<fastlstm::float16>(10, 0x7c00); });

}  // namespace
