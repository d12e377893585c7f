// Tensor core instructions in plain C++. For layouts see "Matrix Fragments for mma" in the PTX ISA.
#pragma once
#include <bit>

#include "../../csrc/cpu/half.h"
#include "simt.h"

namespace simt {

// Rounds to TF32, which has 10 mantissa bits: to nearest, ties away from zero.
inline uint32_t to_tf32(float x) {
  const auto u = std::bit_cast<uint32_t>(x);
  return std::isfinite(x) ? (u + 0x1000) & ~0x1fffu : u;
}

template <typename H>
float half_of_word(uint32_t word, int half) {
  H h;
  h.bits = static_cast<uint16_t>(word >> 16 * half);
  return static_cast<float>(h);
}

// d += A B, for the part of d that this lane has. a, b0 and b1 are this lane's words of A and B,
// each with two 16-bit values. Lane 4 g + q has these elements:
//   A (16 x 16): rows g and g + 8, columns 2q, 2q + 1, 2q + 8 and 2q + 9;
//   B (16 x 8): rows 2q, 2q + 1, 2q + 8 and 2q + 9, column g;
//   D (16 x 8): rows g and g + 8, columns 2q and 2q + 1.
template <typename H, typename W>
void mma_16bit(float (&d)[4], const W& a, uint32_t b0, uint32_t b1) {
  const uint32_t mine[] = {a.word[0], a.word[1], a.word[2], a.word[3], b0, b1};
  const auto all = post(mine, 6);
  const unsigned g = self().lane / 4, q = self().lane % 4;
  for (unsigned i = 0; i < 4; ++i) {
    const unsigned second_row = i / 2, column = 2 * q + i % 2;
    for (unsigned k = 0; k < 16; ++k) {
      const unsigned peer = k % 8 / 2, half = k % 2, second_k = k / 8;
      d[i] += half_of_word<H>(all[4 * g + peer][2 * second_k + second_row], half) *
              half_of_word<H>(all[4 * column + peer][4 + second_k], half);
    }
  }
}

template <typename W>
void mma_bfloat16(float (&d)[4], const W& a, uint32_t b0, uint32_t b1) {
  mma_16bit<fastlstm::bfloat16>(d, a, b0, b1);
}
template <typename W>
void mma_float16(float (&d)[4], const W& a, uint32_t b0, uint32_t b1) {
  mma_16bit<fastlstm::float16>(d, a, b0, b1);
}

// The same for TF32. A is 16 x 8, with the columns q and q + 4 in lane 4 g + q, and B is 8 x 8,
// with the rows q and q + 4. The low 13 bits of a word are ignored.
template <typename W>
void mma_tf32(float (&d)[4], const W& a, uint32_t b0, uint32_t b1) {
  const uint32_t mine[] = {a.word[0], a.word[1], a.word[2], a.word[3], b0, b1};
  const auto all = post(mine, 6);
  const unsigned g = self().lane / 4, q = self().lane % 4;
  const auto value = [](uint32_t word) { return std::bit_cast<float>(word & ~0x1fffu); };
  for (unsigned i = 0; i < 4; ++i)
    for (unsigned k = 0; k < 8; ++k)
      d[i] += value(all[4 * g + k % 4][2 * (k / 4) + i / 2]) *
              value(all[4 * (2 * q + i % 2) + k % 4][4 + k / 4]);
}

}  // namespace simt
