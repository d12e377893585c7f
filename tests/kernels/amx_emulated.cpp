// The kernels for AMX, compiled with an emulation of AMX's tiles that gives the same bits, so that
// they run on processors without AMX.
#if defined(__x86_64__)
#include "cpu/targets/target_pragma.h"
FASTLSTM_TARGET("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")
#define FASTLSTM_ISA amx_emulated
#define FASTLSTM_VECTOR_BYTES 64
#include "cpu/targets/avx512.h"
#include "cpu/targets/kernels.h"

namespace fastlstm::amx_emulated {

// The eight tile registers, each with 16 rows of 64 bytes.
struct Amx {
  template <int t>
  static void load(const void* from, int64_t stride) {
    for (int r = 0; r < rows[t]; ++r)
      std::memcpy(tiles[t][r], static_cast<const char*>(from) + r * stride, sizeof tiles[t][r]);
  }
  template <int t>
  static void store(void* to, int64_t stride) {
    for (int r = 0; r < rows[t]; ++r)
      std::memcpy(static_cast<char*>(to) + r * stride, tiles[t][r], sizeof tiles[t][r]);
  }
  template <int t>
  static void zero() {
    std::memset(tiles[t], 0, sizeof tiles[t]);
  }
  // Adds the product of the tiles a and b to the tile `sum`. A row of b has the elements of two
  // (bfloat16) or four (int8) consecutive rows of a matrix, interleaved. For bfloat16, the even
  // rows of that matrix have one sum and the odd rows another; both begin with zero. Then the two
  // sums are added, and the result is added to `sum`. Subnormal numbers count as zeros.
  template <typename T, int sum, int a, int b>
  static void multiply_add() {
    for (int r = 0; r < rows[a]; ++r) {
      if constexpr (sizeof(T) == 1) {
        for (int k = 0; k < rows[b]; ++k) add_dots(tiles[a][r] + k, tiles[b][k], tiles[sum][r]);
        continue;
      }
      Vec<float> sums[2] = {Vec<float>(0.0f), Vec<float>(0.0f)};
      for (int k = 0; k < rows[b]; ++k)
        for (int odd = 0; odd < 2; ++odd) {
          const Vec<float> of_a = element(broadcast(&tiles[a][r][k]), odd);
          const Vec<float> of_b = element(Vec<float>::load(tiles[b][k]), odd);
          sums[odd] = flushed(fused(of_a, of_b, sums[odd]));
        }
      const Vec<float> both = flushed(sums[0] + sums[1]);
      flushed(Vec<float>::load(tiles[sum][r]) + both).store(tiles[sum][r]);
    }
  }
  static void configure(const int64_t (&rows_of_tiles)[8]) {
    for (int t = 0; t < 8; ++t) rows[t] = static_cast<int>(rows_of_tiles[t]);
  }
  static void release() {}

 private:
  // Adds to each of 16 int32 sums the products of four uint8 numbers of A with four int8 of B.
  static void add_dots(const void* a_bytes, const void* b_bytes, void* to) {
    const auto* const a = static_cast<const uint8_t*>(a_bytes);
    const auto* const b = static_cast<const int8_t*>(b_bytes);
    for (int n = 0; n < 64; ++n) {
      int32_t* const sum = static_cast<int32_t*>(to) + n / 4;
      *sum += a[n % 4] * b[n];
    }
  }
  // Replaces subnormal numbers by zeros.
  FASTLSTM_INLINE static Vec<float> flushed(const Vec<float>& x) {
    const __m512i bits = _mm512_castps_si512(x.v);
    const __mmask16 is_normal = _mm512_test_epi32_mask(bits, _mm512_set1_epi32(0x7f800000));
    const __m512i sign = _mm512_and_si512(bits, _mm512_set1_epi32(0x80000000));
    return Vec<float>(_mm512_castsi512_ps(_mm512_mask_mov_epi32(sign, is_normal, bits)));
  }
  // The 32 bits of a pair of bfloat16, in every lane.
  FASTLSTM_INLINE static Vec<float> broadcast(const float* pair) {
    return Vec<float>(_mm512_castsi512_ps(_mm512_set1_epi32(read<int32_t>(pair))));
  }
  // The first bfloat16 of every pair, or the second if `odd`, as float32.
  FASTLSTM_INLINE static Vec<float> element(const Vec<float>& pairs, bool odd) {
    const __m512i bits = _mm512_castps_si512(pairs.v), upper = _mm512_set1_epi32(0xffff0000);
    return flushed(Vec<float>(
        _mm512_castsi512_ps(odd ? _mm512_and_si512(bits, upper) : _mm512_slli_epi32(bits, 16))));
  }

  static thread_local float tiles[8][16][16];
  static thread_local int rows[8];
};
thread_local float Amx::tiles[8][16][16];
thread_local int Amx::rows[8];

}  // namespace fastlstm::amx_emulated

#include "cpu/products/split_float32.h"
#include "cpu/targets/amx_table.h"
FASTLSTM_TARGET_END
#endif
