// Products of int4 by register tiles: included once for each target.
//
// Rows are encoded as for int8. Each 32 terms of a column share a scale. A panel is, for each 32,
// [scale of each column][4][columns][4]: a byte holds two of 8 neighbors, k below k + 4. Sums of 32
// are exact in int32; those of all are float32, in order, so no result depends on the tile.
#pragma once
#include "cpu/products/tiles_int8.h"

namespace fastlstm::FASTLSTM_ISA {

constexpr int64_t kInt4Group = 32, kBytesOfGroup = kInt4Group / 2 + sizeof(float);

template <typename Dot, int R, int V, int W>
static void multiply_int4_tile(const PanelProduct& p, Int<R>, Int<V>, Int<W>, int64_t first,
                               int64_t panel) {
  using Native = Vec<float>::Native;
  constexpr int L = Vec<float>::lanes;
  // The upper halves of bytes are elements 16 times as large, with their sign.
  constexpr auto kUpper = static_cast<int32_t>(0xf0f0f0f0);
  Vec<float> sum[R][V] = {};
  const char* b = static_cast<const char*>(p.panel) + panel * p.panel_stride;
  for (int64_t k = 0; k < p.K; k += kInt4Group, b += W * L * kBytesOfGroup) {
    Fours whole[R][V] = {};
#pragma GCC unroll 4
    for (int j = 0; j < kInt4Group; j += 2 * kFours)
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) {
        const char* const at = b + v / W * p.panel_stride + (v % W + (1 + j / 8) * W) * L * kFours;
        __builtin_prefetch(at + kBytesAhead);
        const Fours halves = read<Fours>(at), upper = halves & kUpper, lower = halves << 4 & kUpper;
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
          const char* const row = static_cast<const char*>(p.a[first + r]) + kInt8RowHeader + k + j;
          const auto low = Dot::row(read<int32_t>(row)), up = Dot::row(read<int32_t>(row + kFours));
          whole[r][v] = Dot::add(up, upper, Dot::add(low, lower, whole[r][v]));
        }
      }
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) {
      const char* const scales = b + v / W * p.panel_stride + v % W * L * sizeof(float);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r)
        sum[r][v] = fused(Vec<float>(__builtin_convertvector(whole[r][v], Native)),
                          Vec<float>(read<Native>(scales)), sum[r][v]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
    const Vec<float> scale(read<float>(p.a[first + r]) / 16);
    float* const row = static_cast<float*>(p.c[first + r]);
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) put_sums(p, sum[r][v] * scale, row, panel * W + v);
  }
}

template <int R, int V, typename Dot>
static void multiply_int4(const PanelProduct& p) {
  for_tiles<R, V>(p, [&](auto... tile) { multiply_int4_tile<Dot>(p, tile...); });
}

// Where the scale of element k of a column lies, and the byte of which it is a half.
FASTLSTM_INLINE char* scale_int4(const PanelColumn& of, int64_t k) {
  return of.panel + k / kInt4Group * kBytesOfGroup * of.width + of.n * sizeof(float);
}
FASTLSTM_INLINE char& byte_int4(const PanelColumn& of, int64_t k) {
  return scale_int4(of, k)[(1 + k % kInt4Group / 8) * of.width * kFours + k % kFours];
}
FASTLSTM_INLINE int bit_int4(int64_t k) { return k / 4 % 2 * 4; }

static void pack_int4(const MatrixRows& matrix, int64_t k_begin, int64_t K, const PanelShape& shape,
                      void* panel) {
  const int64_t width = shape.vectors * Vec<float>::lanes;
  std::memset(panel, 0, padded(K) / kInt4Group * kBytesOfGroup * width);
  for (int64_t n = 0; n < shape.columns; ++n) {
    const PanelColumn to{static_cast<char*>(panel), width, K, n};
    const auto* const from = static_cast<const int8_t*>(matrix.rows[shape.first_column + n]);
    for (int64_t k = 0; k < K; ++k) byte_int4(to, k) |= (from[k_begin + k] & 15) << bit_int4(k);
  }
}
static void put_scales_int4(const PanelColumn& of, const float* scales) {
  for (int64_t k = 0; k < of.K; k += kInt4Group)
    std::memcpy(scale_int4(of, k), scales + k / kInt4Group, sizeof(float));
}
static void unpack_int4(const PanelColumn& of, void* elements, float* scales) {
  for (int64_t k = 0; k < of.K; ++k) {
    const auto upper = static_cast<int8_t>(byte_int4(of, k) << (4 - bit_int4(k)));
    static_cast<int8_t*>(elements)[k] = upper >> 4;
    scales[k / kInt4Group] = read<float>(scale_int4(of, k));
  }
}

template <int R, int V, typename Dot>
static constexpr Product int4_product() {
  static_assert(Dot::excess == 0, "the sums are of rows that are not shifted up");
  Product product = int8_product<R, V, Dot>();
  product.format = product.given = Format::int4;
  product.bits = 8 * kBytesOfGroup / kInt4Group, product.header = 0;
  product.pack = pack_int4, product.multiply = multiply_int4<R, V, Dot>;
  product.put_scales = put_scales_int4, product.unpack = unpack_int4, product.put_rows = nullptr;
  return product;
}

}  // namespace fastlstm::FASTLSTM_ISA
