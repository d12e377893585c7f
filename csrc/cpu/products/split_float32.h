// The product of float32 as three products of bfloat16, on AMX tiles.
//
// A float32 is split into two bfloat16, its planes, whose sum is nearly the number: each plane has
// 8 bits of the significand. The product of two such sums has four terms. The three largest are
// added, the smallest of them first. The term that is left out is at most 2^-15 of the product. A
// tile instruction adds 32 terms before it rounds, so a sum of K terms is rounded K / 32 times.
//
// A block is 32 terms, or 16 pairs: terms k and k + 16 form a pair, because two vectors of terms
// make 16 such pairs without a shuffle. A row is [block][plane][pair], and a panel of two tiles is
// [block][plane][tile][pair][16 columns]. K is padded with zeros. For 32 rows and 32 columns, 12
// tile products load 10 tiles, so the tile products are the bound. With few rows, or with a panel
// that is not in the L2 cache, loading is the bound.
//
// A sum that is not finite is computed again in float32. The planes of an infinity, or a sum that
// overflows on the way, could otherwise give a NaN where float32 gives an infinity or a number.
#pragma once
#include "cpu/products/amx_tiles.h"

namespace fastlstm::FASTLSTM_ISA {

constexpr int64_t kBlockTerms = 32;
constexpr int64_t kTileElements = 16 * 32;  // bfloat16 elements
// The size of one plane (two tiles) of a block of a panel, in bfloat16 elements and in floats.
constexpr int64_t kPanelPlane = 2 * kTileElements, kPanelPlaneFloats = kPanelPlane / 2;

// Whether all numbers are finite: 0 * x is NaN if x is not finite. Four sums hide latency.
FASTLSTM_INLINE bool all_finite(const float* sums, int64_t vectors) {
  Vec<float> zeros[4] = {};
  for (int64_t i = 0; i < vectors; ++i)
    zeros[i % 4] = fused(Vec<float>::load(sums + i * kTileRows), Vec<float>(0.0f), zeros[i % 4]);
  const Vec<float> all = (zeros[0] + zeros[1]) + (zeros[2] + zeros[3]);
  return _mm512_cmp_ps_mask(all.v, _mm512_setzero_ps(), _CMP_EQ_OQ) == 0xffff;
}

struct SplitFloat32 {
  static constexpr int kPlanes = 2;
  static constexpr int64_t kBytesOfTerm = 2 * kPlanes;

  // Splits 16 float32 into their planes. The upper half of each lane of planes[0] and planes[1] is
  // a bfloat16; the lower halves are zero. Ties round away from zero.
  FASTLSTM_INLINE static void split(__m512i bits, __m512i (&planes)[kPlanes]) {
    const __m512i half = _mm512_set1_epi32(0x8000), upper = _mm512_set1_epi32(0xffff0000);
    const auto rounded = [&](__m512i x) __attribute__((always_inline)) {
      return _mm512_and_si512(_mm512_add_epi32(x, half), upper);
    };
    const auto minus = [&](__m512i x, __m512i y) __attribute__((always_inline)) {
      return _mm512_castps_si512(_mm512_sub_ps(_mm512_castsi512_ps(x), _mm512_castsi512_ps(y)));
    };
    planes[0] = rounded(bits);
    planes[1] = rounded(minus(bits, planes[0]));
    // What would round to infinity is truncated. Infinity and NaN are in the first plane only.
    const __m512i magnitude = _mm512_and_si512(bits, _mm512_set1_epi32(0x7fffffff));
    const __mmask16 large = _mm512_cmpge_epu32_mask(magnitude, _mm512_set1_epi32(0x7f7f8000));
    if (__builtin_expect(large == 0, 1)) return;
    const __m512i infinity = _mm512_set1_epi32(0x7f800000);
    const __mmask16 finite = _mm512_cmplt_epu32_mask(magnitude, infinity);
    const __mmask16 is_nan = _mm512_cmpgt_epu32_mask(magnitude, infinity);
    __m512i cut = _mm512_and_si512(bits, upper);
    cut = _mm512_mask_or_epi32(cut, is_nan, cut, _mm512_set1_epi32(0x400000));  // stays a NaN
    planes[0] = _mm512_mask_mov_epi32(planes[0], large, cut);
    const __m512i remainder = minus(bits, planes[0]);
    // The second plane is truncated too: if it were rounded, the sum of both could be infinite.
    const __m512i second = _mm512_mask_and_epi32(rounded(remainder), large, remainder, upper);
    planes[1] = _mm512_maskz_mov_epi32(finite, second);
  }

  // Splits 16 pairs of numbers. Stores plane p, 16 pairs of bfloat16, to `to` + p * stride.
  FASTLSTM_INLINE static void split_pairs(const Vec<float>& first, const Vec<float>& second,
                                          float* to, int64_t stride) {
    __m512i of_first[kPlanes], of_second[kPlanes];
    split(_mm512_castps_si512(first.v), of_first), split(_mm512_castps_si512(second.v), of_second);
    for (int p = 0; p < kPlanes; ++p)
      _mm512_storeu_si512(
          to + p * stride,
          _mm512_mask_blend_epi16(0xaaaaaaaa, _mm512_srli_epi32(of_first[p], 16), of_second[p]));
  }
  // With an odd number of blocks, rows do not compete for the same sets of the L1 cache.
  static int64_t encoded_bytes(int64_t K) {
    return ((K + kBlockTerms - 1) / kBlockTerms | 1) * kBlockTerms * kBytesOfTerm;
  }

  static void encode(const void* from, int64_t K, void* to) {
    const float* const row = static_cast<const float*>(from);
    float* block = static_cast<float*>(to);
    for (int64_t k = 0; k < K; k += kBlockTerms, block += kPlanes * kTileRows) {
      const int64_t left = K - k, more = left - kTileRows;
      Vec<float> first, second(0.0f);
      load(row + k, first, smaller(left, kTileRows));
      if (more > 0) load(row + k + kTileRows, second, smaller(more, kTileRows));
      split_pairs(first, second, block, kTileRows);
    }
  }

  // Transposes 16 x 16 pairs, and stores `count` rows of the result.
  FASTLSTM_INLINE static void transpose_tile(const float* from, int64_t from_stride, float* to,
                                             int64_t to_stride, int64_t count) {
    Vec<float> x[kTileRows];
    for (int64_t n = 0; n < kTileRows; ++n) x[n] = Vec<float>::load(from + n * from_stride);
    transpose_square(x);
    for (int64_t n = 0; n < count; ++n) x[n].store(to + n * to_stride);
  }

  // Pack 16 columns of a block of terms: pack_rows from pointers to rows, pack_columns from
  // pointers to columns. `count` columns and `terms` terms exist; the others become zeros.
  FASTLSTM_INLINE static void pack_rows(const void* const* rows, int64_t column, int64_t count,
                                        int64_t terms, float* to) {
    for (int64_t k = 0; k < kTileRows; ++k, to += kTileRows) {
      Vec<float> first(0.0f), second(0.0f);
      const auto row = [&](int64_t i) { return static_cast<const float*>(rows[i]) + column; };
      if (k < terms) load(row(k), first, count);
      if (k + kTileRows < terms) load(row(k + kTileRows), second, count);
      split_pairs(first, second, to, kPanelPlaneFloats);
    }
  }
  FASTLSTM_INLINE static void pack_columns(const void* const* columns, int64_t k, int64_t count,
                                           int64_t terms, float* to) {
    alignas(64) float encoded[kTileRows][kPlanes * kTileRows] = {};
    for (int64_t n = 0; n < count; ++n)
      encode(static_cast<const float*>(columns[n]) + k, terms, encoded[n]);
    for (int p = 0; p < kPlanes; ++p)
      transpose_tile(encoded[0] + p * kTileRows, kPlanes * kTileRows, to + p * kPanelPlaneFloats,
                     kTileRows, kTileRows);
  }

  static void pack(const MatrixRows& matrix, int64_t k_begin, int64_t K, const PanelShape& shape,
                   void* panel) {
    float* to = static_cast<float*>(panel);
    for (int64_t k = 0; k < K; k += kBlockTerms, to += kPlanes * kPanelPlaneFloats)
      for (int64_t n = 0; n < kPairWidth; n += kTileRows) {
        const int64_t left = shape.columns - n, terms = smaller(K - k, kBlockTerms);
        const int64_t count = left < 0 ? 0 : smaller(left, kTileRows);
        const int64_t column = shape.first_column + n;
        if (matrix.transposed)
          pack_columns(matrix.rows + column, k_begin + k, count, terms, to + n * kTileRows);
        else
          pack_rows(matrix.rows + k_begin + k, column, count, terms, to + n * kTileRows);
      }
  }

  // Returns the sum of the two planes of a number. The planes lie `stride` elements apart.
  FASTLSTM_INLINE static float joined(const uint16_t* planes, int64_t stride) {
    const auto plane = [&](int p) { return bits_as<float>(uint32_t(planes[p * stride]) << 16); };
    return plane(1) + plane(0);
  }

  static void multiply_in_float32(const void* row, const void* panel, int64_t K, float* sums) {
    const auto *a = static_cast<const uint16_t*>(row), *b = static_cast<const uint16_t*>(panel);
    for (int64_t n = 0; n < kPairWidth; ++n) sums[n] = 0;
    for (int64_t k = 0; k < K; ++k) {
      const int64_t block = k / kBlockTerms * kPlanes, pair = k % kTileRows,
                    half = k % kBlockTerms / kTileRows;  // of the pair
      const float x = joined(a + block * kBlockTerms + 2 * pair + half, kBlockTerms);
      const uint16_t* const pairs = b + block * kPanelPlane + pair * kBlockTerms + half;
      for (int64_t n = 0; n < kPairWidth; ++n)
        sums[n] = __builtin_fmaf(
            x, joined(pairs + n / kTileRows * kTileElements + n % kTileRows * 2, kPanelPlane),
            sums[n]);
    }
  }

  // Computes all sums of a row and a panel again in float32 if one of them is not finite.
  static void recompute_nonfinite(const TileRows<kPlanes>& a, const PanelProduct& p, float* sums,
                                  int64_t width) {
    for (int64_t i = 0; i < p.rows * p.panels; ++i) {
      const int64_t r = i / p.panels, panel = i % p.panels;
      float* const sums_of_panel = sums + r * width + panel * kPairWidth;
      if (all_finite(sums_of_panel, kPairWidth / kTileRows)) continue;
      const auto* const b = static_cast<const char*>(p.panel) + panel * p.panel_stride;
      multiply_in_float32(a.row(r), b, p.K, sums_of_panel);
    }
  }

  static void multiply(const PanelProduct& p) {
    constexpr int64_t block = 2 * kPlanes * kPanelPlane;
    const int64_t blocks = (p.K + kBlockTerms - 1) / kBlockTerms,
                  bytes = blocks * kBlockTerms * kBytesOfTerm;
    const auto* const first = static_cast<const char*>(p.panel);
    multiply_on_tiles<bfloat16, kPlanes>(
        p, p.k_begin * kBytesOfTerm, bytes,
        {first, block, 2 * kPanelPlane, p.panel_stride, 2 * kTileElements, kLineBytes},
        [](const auto& a, const PanelProduct& part, void* buffer, int64_t width) {
          float* const sums = static_cast<float*>(buffer);
          if (__builtin_expect(!all_finite(sums, part.rows * width / kTileRows), 0))
            recompute_nonfinite(a, part, sums, width);
          put_rows<float, float>(part, sums, width);
        });
  }

  static void transpose(const void* const* from, int64_t rows, int64_t begin, int64_t end,
                        void* transposed) {
    const int64_t bytes_of_row = encoded_bytes(rows);
    for (int64_t column = begin; column < end; column += kTileRows) {
      const int64_t count = smaller(end - column, kTileRows);
      char* const to = static_cast<char*>(transposed) + (column - begin) * bytes_of_row;
      for (int64_t k = 0; k < rows; k += kBlockTerms) {
        // A panel of these columns, whose tiles are then transposed.
        alignas(64) float pairs[kPlanes * kPanelPlaneFloats];
        pack_rows(from + k, column, count, smaller(rows - k, kBlockTerms), pairs);
        float* const rows_of_pairs = reinterpret_cast<float*>(to + k * kBytesOfTerm);
        for (int p = 0; p < kPlanes; ++p)
          transpose_tile(pairs + p * kPanelPlaneFloats, kTileRows, rows_of_pairs + p * kTileRows,
                         bytes_of_row / 4, count);
      }
    }
  }

  static GemmKernels gemm() {
    GemmKernels gemm{};
    gemm.format = Format::bfloat16x2, gemm.source_format = Format::float32;
    gemm.element_bits = 8 * kBytesOfTerm, gemm.relative_speed = 3.5;
    gemm.lanes = kTileRows, gemm.max_vectors = gemm.vectors_multiple = 2;
    gemm.k_multiple = kBlockTerms, gemm.kc = 2048;
    gemm.tile_rows = 4 * kTileRows;
    gemm.min_rows_per_panel_load = gemm.min_encoded_rows_per_panel_load = 3 * kTileRows;
    gemm.l2_share = 0.8;
    gemm.bytes_ahead = 0;  // only as many rows ahead as fill a tile (steps_ahead in plan.cpp)
    gemm.panels_at_once = 2;
    gemm.pack = pack, gemm.multiply = multiply;
    gemm.encode = encode, gemm.encoded_bytes = encoded_bytes;
    gemm.transpose = transpose, gemm.end_thread = Amx::release;
    gemm.instruction_set = FASTLSTM_STRING(FASTLSTM_ISA);
    return gemm;
  }
};

}  // namespace fastlstm::FASTLSTM_ISA
