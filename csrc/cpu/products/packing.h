// Packs matrices into panels, unpacks columns, transposes blocks of a matrix, and sums rows.
// Included once for each target. Memory bounds all of these.
#pragma once
#include "cpu/products/tiles.h"

namespace fastlstm::FASTLSTM_ISA {

// One stage of transposing a square in registers. It shuffles each pair of registers a = x[i] and
// b = x[i + distance]. A block is 16 bytes of a register: `block` elements. If distance < block,
// the elements of a and b are interleaved within each block, as x86 does by unpacklo (the new a)
// and unpackhi (the new b). Otherwise the new a has the blocks 0, 2, ... of a and then of b, and
// the new b has the blocks 1, 3, ... of a and then of b.
template <int distance, typename A>
FASTLSTM_INLINE void transpose_stage(Vec<A> (&x)[Vec<A>::lanes]) {
  constexpr int L = Vec<A>::lanes, block = 16 / sizeof(A);
  typename Registers<A>::Bits first, second;
  for (int j = 0; j < L; ++j) {
    first[j] = distance < block ? j % 2 * L + j / block * block + j % block / 2
                                : j / block * 2 * block + j % block;
    second[j] = first[j] + (distance < block ? block / 2 : block);
  }
#pragma GCC unroll 16
  for (int i = 0; i < L; ++i) {
    if (i & distance) continue;
    const Vec<A> a = x[i], b = x[i + distance];
    x[i] = Vec<A>(shuffle(a.v, b.v, first));
    x[i + distance] = Vec<A>(shuffle(a.v, b.v, second));
  }
}

// Transposes a square of lanes x lanes elements in registers.
template <typename A>
FASTLSTM_INLINE void transpose_square(Vec<A> (&x)[Vec<A>::lanes]) {
  constexpr int L = Vec<A>::lanes, block = 16 / sizeof(A);
  if constexpr (block == 4) transpose_stage<2>(x);
  transpose_stage<1>(x);
  if constexpr (block < L) transpose_stage<block>(x);
  if constexpr (2 * block < L) transpose_stage<2 * block>(x);
}

// Transposes one vector of columns: to[k * stride + n] = from[n][k] for n < lanes and k < K.
template <typename A>
static void transpose_vector(const A* const* from, int64_t K, A* to, int64_t stride) {
  constexpr int L = Vec<A>::lanes;
  for (int64_t next = 0; next < K && K >= L; next += L) {
    const int64_t k = next + L <= K ? next : K - L;  // the last square repeats elements
    Vec<A> x[L];
#pragma GCC unroll 16
    for (int n = 0; n < L; ++n) x[n] = Vec<A>::load(from[n] + k);
    transpose_square(x);
#pragma GCC unroll 16
    for (int n = 0; n < L; ++n) x[n].store(to + (k + n) * stride);
  }
  for (int64_t k = 0; k < K && K < L; ++k)  // by memcpy, since pairs of 16 bits may not be aligned
    for (int n = 0; n < L; ++n) __builtin_memcpy(to + k * stride + n, from[n] + k, sizeof(A));
}

// Finds L columns of a transposed matrix: columns[l] points to term k of column n + l of the panel,
// or of the panel's first column if column n + l does not exist.
template <typename T, int L>
FASTLSTM_INLINE void find_columns(const MatrixRows& matrix, const PanelShape& shape, int64_t n,
                                  int64_t k, const T* (&columns)[L]) {
  for (int l = 0; l < L; ++l) {
    const void* const column =
        matrix.rows[shape.first_column + (n + l < shape.columns ? n + l : 0)];
    columns[l] = static_cast<const T*>(column) + k;
  }
}

// GemmFunctions::pack, for float and double.
template <typename A>
static void pack(const MatrixRows& matrix, int64_t k_begin, int64_t K, const PanelShape& shape,
                 void* to) {
  constexpr int L = Vec<A>::lanes;
  const int64_t width = shape.vectors * L;
  A* const panel = static_cast<A*>(to);
  if (!matrix.transposed) {
    for (int64_t k = 0; k < K; ++k) {
      const A* from = static_cast<const A*>(matrix.rows[k_begin + k]) + shape.first_column;
      for (int64_t n = 0; n < width; n += L) {
        Vec<A> x;
        load(from + n, x, smaller(shape.columns - n, L));
        x.store(panel + k * width + n);
      }
    }
    return;
  }
  for (int64_t n = 0; n < width; n += L) {
    const A* columns[L];
    find_columns(matrix, shape, n, k_begin, columns);
    transpose_vector(columns, K, panel + n, width);
    for (int64_t l = shape.columns - n < 0 ? 0 : shape.columns - n; l < L; ++l)
      for (int64_t k = 0; k < K; ++k) panel[k * width + n + l] = A(0);
  }
}

// GemmFunctions::unpack. A lane of the panel holds `terms_per_lane` neighboring terms of a column.
template <typename T, int terms_per_lane>
[[maybe_unused]] static void unpack(const PanelColumn& column, void* elements, float*) {
  for (int64_t k = 0; k < column.K; ++k) {
    const int64_t lane = k / terms_per_lane * column.width + column.n;
    const int64_t index = lane * terms_per_lane + k % terms_per_lane;
    __builtin_memcpy(static_cast<T*>(elements) + k, column.panel + index * sizeof(T), sizeof(T));
  }
}

// GemmFunctions::sum_rows.
template <typename T, typename A>
static void sum_rows(const void* const* rows, int64_t count, int64_t K, void* to, bool accumulate) {
  constexpr int L = Vec<A>::lanes;
  A* const sums = static_cast<A*>(to);
  for (int64_t r = 0; r < count; ++r) {
    const T* const row = static_cast<const T*>(rows[r]);
    Vec<A> lanes(A(0)), x;
    int64_t k = 0;
    for (; k + L <= K; k += L) {
      load(row + k, x);
      lanes = lanes + x;
    }
    A sum(0);
    for (; k < K; ++k) sum += A(row[k]);
    for (int l = 0; l < L; ++l) sum += lanes.v[l];
    sums[r] = accumulate ? sums[r] + sum : sum;
  }
}

// View pairs of bfloat16 as floats, so that a pair moves as one element. A move keeps all bits.
FASTLSTM_INLINE const float* as_pairs(const bfloat16* from) {
  return reinterpret_cast<const float*>(from);
}
FASTLSTM_INLINE float* as_pairs(bfloat16* from) { return reinterpret_cast<float*>(from); }

// The bytes of a row of K bfloat16, with a zero at the end if K is odd.
[[maybe_unused]] static int64_t bytes_of_pairs(int64_t K) { return 2 * (K + K % 2); }
// GemmFunctions::encode: rounds a row of float32 to bfloat16.
[[maybe_unused]] static void encode_bfloat16(const void* from, int64_t K, void* encoded) {
  constexpr int64_t L = Vec<float>::lanes;
  const float* const row = static_cast<const float*>(from);
  bfloat16* const to = static_cast<bfloat16*>(encoded);
  Vec<float> x;
  for (int64_t k = 0; k < K; k += L) {
    const int64_t n = smaller(K - k, L);
    load(row + k, x, n);
    store(x, to + k, n);
  }
  if (K % 2) to[K] = bfloat16(0.0f);
}

// Interleaves elements of 16 bits: x becomes the pairs (x[0], y[0]), (x[1], y[1]) ... of the first
// half of the elements, and y those of the second half.
FASTLSTM_INLINE void interleave(Vec<float>& x, Vec<float>& y) {
  typedef uint16_t Halves __attribute__((vector_size(FASTLSTM_VECTOR_BYTES)));
  constexpr int count = 2 * Vec<float>::lanes;
  Halves first, second;
  for (int j = 0; j < count; ++j) {
    first[j] = j / 2 + j % 2 * count;
    second[j] = first[j] + count / 2;
  }
  const Halves a = bits_as<Halves>(x.v), b = bits_as<Halves>(y.v);
  x.v = bits_as<Vec<float>::Native>(shuffle(a, b, first));
  y.v = bits_as<Vec<float>::Native>(shuffle(a, b, second));
}

// GemmFunctions::pack, for pairs of bfloat16.
template <>
[[maybe_unused]] void pack<bfloat16>(const MatrixRows& matrix, int64_t k_begin, int64_t K,
                                     const PanelShape& shape, void* to) {
  constexpr int L = Vec<float>::lanes;
  const int64_t width = shape.vectors * L, pairs = K / 2;
  bfloat16* const panel = static_cast<bfloat16*>(to);
  const auto row = [&](int64_t k) {
    return static_cast<const bfloat16*>(matrix.rows[k_begin + k]) + shape.first_column;
  };
  if (matrix.transposed) {
    for (int64_t n = 0; n < width; n += L) {
      const bfloat16* columns[L];
      const float* pair_columns[L];
      find_columns(matrix, shape, n, k_begin, columns);
      for (int l = 0; l < L; ++l) pair_columns[l] = as_pairs(columns[l]);
      transpose_vector(pair_columns, pairs, as_pairs(panel) + n, width);
      bfloat16* const last = panel + 2 * (pairs * width + n);
      for (int l = 0; K % 2 && l < L; ++l)
        last[2 * l] = columns[l][K - 1], last[2 * l + 1] = bfloat16(0.0f);
    }
  } else {
    for (int64_t k = 0; k < K; k += 2)
      for (int64_t n = 0; n < shape.columns; n += 2 * L) {
        const int64_t count = smaller(shape.columns - n, 2 * L);
        Vec<float> x = DotStep<bfloat16>::load_first(row(k) + n, count), y(0.0f);
        if (k + 1 < K) y = DotStep<bfloat16>::load_first(row(k + 1) + n, count);
        interleave(x, y);
        float* const to = as_pairs(panel) + k / 2 * width + n;
        x.store(to);
        if (n + L < width) y.store(to + L);
      }
  }
  for (int64_t k = 0; k < (K + 1) / 2; ++k)
    for (int64_t n = shape.columns; n < width; ++n)
      panel[2 * (k * width + n)] = panel[2 * (k * width + n) + 1] = bfloat16(0.0f);
}

// GemmFunctions::transpose.
template <typename T>
static void transpose(const void* const* from, int64_t rows, int64_t begin, int64_t end,
                      void* transposed) {
  using A = std::conditional_t<sizeof(T) == 2, float, T>;  // the type of the moved elements
  constexpr int L = Vec<A>::lanes;
  T* const to = static_cast<T*>(transposed);
  const auto row = [&](int64_t r) { return static_cast<const T*>(from[r]); };
  const A* columns[L];
  int64_t r = 0;
  if constexpr (sizeof(T) == sizeof(A)) {
    for (; r + L <= rows; r += L) {
      for (int l = 0; l < L; ++l) columns[l] = row(r + l) + begin;
      transpose_vector(columns, end - begin, to + r, rows);
    }
  } else if (rows % 2 == 0) {  // then each row of `to` consists of whole pairs
    T pairs[L][2 * 64];
    for (int l = 0; l < L; ++l) columns[l] = as_pairs(pairs[l]);
    for (; r + 2 * L <= rows; r += 2 * L)
      for (int64_t m = begin; m < end; m += 64) {
        const int64_t count = smaller(end - m, 64);
        pack<T>({from + r, false}, 0, 2 * L, {m, count, 64 / L}, pairs);
        transpose_vector(columns, count, as_pairs(to + (m - begin) * rows + r), rows / 2);
      }
  }
  for (; r < rows; ++r)
    for (int64_t m = begin; m < end; ++m) to[(m - begin) * rows + r] = row(r)[m];
}

}  // namespace fastlstm::FASTLSTM_ISA
