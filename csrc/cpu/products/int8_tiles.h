// The micro-kernels for int8: products by register tiles. Included once for each target.
//
// A row is encoded before each product: its scale, then its elements as multiples of the scale from
// -127 to 127. If the zero point is 128, it is added to them, since some instructions take unsigned
// rows. A panel is [width] scales, [width] sums of its columns, and [K / 4][width][4] elements. The
// sums of the columns are for the zero point: sum of (a + 128) b = sum of a b + 128 * sum of b.
//
// Sums are exact in int32, so a result depends neither on the tile nor on the thread. With few rows
// loading the panel bounds the product, with many rows the dot products bound it.
#pragma once
#include "cpu/products/tiles.h"

namespace fastlstm::FASTLSTM_ISA {

constexpr int64_t kQuad = 4;                                        // the terms in a lane
constexpr int64_t kColumnHeader = sizeof(float) + sizeof(int32_t);  // bytes

// K is padded to a multiple of the terms in a row of an AMX tile.
constexpr int64_t kInt8Multiple = 64;
FASTLSTM_INLINE int64_t padded(int64_t K) {
  return (K + kInt8Multiple - 1) / kInt8Multiple * kInt8Multiple;
}

static int64_t encoded_bytes_int8(int64_t K) { return kInt8RowHeader + padded(K); }

FASTLSTM_INLINE int32_t largest(const Int32Vec& x) {
  constexpr int L = Vec<float>::lanes;
  int32_t lanes[L];
  std::memcpy(lanes, &x, sizeof x);
#pragma GCC unroll 4
  for (int half = L / 2; half > 0; half /= 2)
#pragma GCC unroll 8
    for (int l = 0; l < half; ++l)
      lanes[l] = lanes[l] > lanes[l + half] ? lanes[l] : lanes[l + half];
  return lanes[0];
}

// Encodes a row that contains infinities: they become 1 and -1, and any other element becomes 0.
// The scale 2^100 saturates every gate that it reaches, and its products with weights are finite.
template <int32_t zero_point>
static void encode_infinities(const float* row, int64_t K, int8_t* to) {
  const float scale = 0x1p100f, infinity = __builtin_inff();
  std::memcpy(to, &scale, sizeof scale);
  std::memset(to + kInt8RowHeader, 0, padded(K));
  for (int64_t k = 0; k < K; ++k)
    to[kInt8RowHeader + k] =
        static_cast<int8_t>((row[k] == infinity) - (row[k] == -infinity) + zero_point);
}

// GemmFunctions::encode.
template <int32_t zero_point>
static void encode_int8(const void* from, int64_t K, void* encoded) {
  constexpr int64_t L = Vec<float>::lanes;
  const float* const row = static_cast<const float*>(from);
  int8_t* const to = static_cast<int8_t*>(encoded);
  // Magnitudes are compared as integers: an infinity is larger than any number, a NaN larger still.
  constexpr int32_t kMagnitude = 0x7fffffff, kInfinity = 0x7f800000;
  Int32Vec magnitudes = {};
  Vec<float> x;
  for (int64_t k = 0; k < K; k += L) {
    load(row + k, x, smaller(K - k, L));
    const Int32Vec bits = bits_as<Int32Vec>(x.v) & kMagnitude;
    magnitudes = bits > magnitudes ? bits : magnitudes;
  }
  const int32_t largest_bits = largest(magnitudes);
  const float magnitude = bits_as<float>(largest_bits);
  float scale = 0, inverse = 0;
  constexpr float kSmallest = 0x1p-100f;  // smaller magnitudes count as 0
  if (largest_bits == kInfinity) return encode_infinities<zero_point>(row, K, to);
  if (largest_bits > kInfinity)
    scale = magnitude;  // NaN
  else if (magnitude > kSmallest)
    inverse = 127 / magnitude, scale = magnitude / 127;
  std::memcpy(to, &scale, sizeof scale);
  // If to_whole is added to a number, the lowest byte is the rounded number plus the zero point.
  const Vec<float> to_whole(0x1.8p23f + zero_point);
  for (int64_t k = 0; k < K; k += L) {
    load(row + k, x, smaller(K - k, L));
    // The product is not fused with the sum, so that all processors get the same integers.
    const Vec<float> whole = keep_in_register(x * Vec<float>(inverse)) + to_whole;
    store_lowest_bytes(bits_as<Int32Vec>(whole.v), to + kInt8RowHeader + k);
  }
  const int64_t written = (K + L - 1) / L * L;
  std::memset(to + kInt8RowHeader + written, 0, padded(K) - written);
}

// The epilogue: scales the sums of vector v of row r and writes them to C. A panel has W vectors.
template <int W>
FASTLSTM_INLINE void put_int8(const PanelProduct& p, Int32Vec sums, int64_t r, int64_t v,
                              int32_t zero_point) {
  constexpr int L = Vec<float>::lanes;
  const char* const header =
      static_cast<const char*>(p.panel) + v / W * p.panel_stride + v % W * L * sizeof(float);
  if (zero_point) sums -= zero_point * read<Int32Vec>(header + W * L * sizeof(float));
  const Vec<float> whole(__builtin_convertvector(sums, Vec<float>::Native));
  const Vec<float> scales = Vec<float>::load(header) * Vec<float>(read<float>(p.a[r]));
  put_sums<float, float>(p, whole * scales, static_cast<float*>(p.c[r]), v);
}

template <typename Dot, int R, int V, int W>
static void multiply_int8_tile(const PanelProduct& p, Int<R>, Int<V>, Int<W>, int64_t first,
                               int64_t panel) {
  constexpr int L = Vec<float>::lanes;
  // A small tile adds to several chains in turn, so that no instruction waits for the one before.
  constexpr int chains = R * V <= 4 ? 4 : R * V <= 8 ? 2 : 1;
  Int32Vec sum[chains][R][V] = {};
  const char* a[R];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) a[r] = static_cast<const char*>(p.a[first + r]) + kInt8RowHeader;
  const char* b =
      static_cast<const char*>(p.panel) + panel * p.panel_stride + W * L * kColumnHeader;
  // The last iteration may read past p.K, but not past padded(p.K), where panels are zero.
  for (int64_t k = 0; k < p.K; k += chains * kQuad) {
#pragma GCC unroll 4
    for (int chain = 0; chain < chains; ++chain, b += W * L * kQuad) {
      Int8Quads terms[V];
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) {
        const char* const from = b + v / W * p.panel_stride + v % W * L * kQuad;
        __builtin_prefetch(from + kPrefetchBytes);
        terms[v] = read<Int8Quads>(from);
      }
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        const typename Dot::Row row = Dot::row(read<int32_t>(a[r] + k + chain * kQuad));
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) sum[chain][r][v] = Dot::add(row, terms[v], sum[chain][r][v]);
      }
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) {
#pragma GCC unroll 4
      for (int chain = 1; chain < chains; ++chain) sum[0][r][v] += sum[chain][r][v];
      put_int8<W>(p, sum[0][r][v], first + r, panel * W + v, Dot::zero_point);
    }
}

// GemmFunctions::multiply.
template <int R, int V, typename Dot>
static void multiply_int8(const PanelProduct& p) {
  for_tiles<R, V>(p, [&](auto... tile) { multiply_int8_tile<Dot>(p, tile...); });
}

// GemmFunctions::put_rows.
template <int max_vectors, int32_t zero_point>
static void put_int8_rows(const PanelProduct& p, const void* sums, int64_t stride) {
  with_count<max_vectors>(p.shape.vectors, [&](auto vectors) {
    constexpr int V = decltype(vectors)::value;
    for (int64_t r = 0; r < p.rows; ++r)
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) {
        const Int32Vec sum =
            read<Int32Vec>(static_cast<const int32_t*>(sums) + r * stride + v * Vec<float>::lanes);
        put_int8<V>(p, sum, r, v, zero_point);
      }
  });
}

FASTLSTM_INLINE int8_t& element_int8(const PanelColumn& column, int64_t k) {
  auto* const terms = reinterpret_cast<int8_t*>(column.panel + kColumnHeader * column.width);
  return terms[(k / kQuad * column.width + column.n) * kQuad + k % kQuad];
}

// GemmFunctions::pack, only for transposed matrices, since weights have this form.
static void pack_int8(const MatrixRows& matrix, int64_t k_begin, int64_t K, const PanelShape& shape,
                      void* panel) {
  const int64_t width = shape.vectors * Vec<float>::lanes;
  char* const to = static_cast<char*>(panel);
  std::memset(to, 0, padded(K) * width);
  for (int64_t n = 0; n < shape.columns; ++n) {
    const PanelColumn column{to - kColumnHeader * width, width, K, n};
    const auto* const from = static_cast<const int8_t*>(matrix.rows[shape.first_column + n]);
    for (int64_t k = 0; k < K; ++k) element_int8(column, k) = from[k_begin + k];
  }
}
static void put_scale_int8(const PanelColumn& column, float scale) {
  int32_t sum = 0;
  for (int64_t k = 0; k < column.K; ++k) sum += element_int8(column, k);
  std::memcpy(column.panel + column.n * sizeof scale, &scale, sizeof scale);
  std::memcpy(column.panel + (column.width + column.n) * sizeof(float), &sum, sizeof sum);
}
static void unpack_int8(const PanelColumn& column, void* elements, float* scale) {
  for (int64_t k = 0; k < column.K; ++k)
    static_cast<int8_t*>(elements)[k] = element_int8(column, k);
  *scale = read<float>(column.panel + column.n * sizeof(float));
}

// Makes GEMM kernels for prepacked int8 weights. Dot: a dot product like PlainDotProduct (vec.h).
template <int R, int V, typename Dot>
static constexpr GemmKernels make_int8_gemm() {
  GemmKernels gemm{};
  gemm.format = gemm.source_format = Format::int8, gemm.element_bits = 8, gemm.relative_speed = 4;
  gemm.lanes = Vec<float>::lanes, gemm.tile_rows = R, gemm.max_vectors = V;
  gemm.pack = pack_int8, gemm.multiply = multiply_int8<R, V, Dot>;
  gemm.put_rows = put_int8_rows<V, Dot::zero_point>;
  gemm.put_scale = put_scale_int8, gemm.unpack = unpack_int8;
  gemm.k_multiple = kInt8Multiple, gemm.header_bytes = kColumnHeader;
  gemm.zero_point = Dot::zero_point;
  gemm.encode = encode_int8<Dot::zero_point>, gemm.encoded_bytes = encoded_bytes_int8;
  gemm.panels_at_once = kColumnsAtOnce / (V * gemm.lanes);
  gemm.instruction_set = FASTLSTM_STRING(FASTLSTM_ISA);
  gemm.kc = int64_t(1) << 62;  // K is never divided: a scale belongs to a whole row
  return gemm;
}

}  // namespace fastlstm::FASTLSTM_ISA
