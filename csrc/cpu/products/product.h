// A product: how a matrix is packed into panels and how rows are multiplied with them, for one
// dtype. A table of functions, so that each instruction set, tile shape or library brings its own.
// Nothing here knows of an LSTM.
#pragma once
#include <cstdint>

#include "cpu/dtypes.h"

namespace fastlstm {

// A [K,N] matrix is cut into panels of a few vectors of columns, each contiguous: [K][width].
// Columns beyond N are zero. A panel of bfloat16 holds pairs: two neighboring k of the same column
// lie together, as dot product instructions take them, and an odd K is filled up with zeros. One of
// int8 holds fours, after the scales of its columns.
struct PanelShape {
  int64_t first_column, columns, vectors;  // columns <= vectors * lanes = width
};

// A matrix by its rows, or, transposed, by its columns: rows[k][n], or rows[n][k].
template <typename T>
struct MatrixRows {
  const T* const* rows;
  bool transposed;
};

// Memory that comes into the L2 cache while a product is computed, a few lines at a time, which
// wait for memory beside the arithmetic.
struct Prefetch {
  const void* const* rows;
  int64_t count, begin, end;  // rows, and the bytes of each
  int64_t lines;              // at a time
  int64_t row = 0, at = begin;

  inline __attribute__((always_inline)) void fetch() {
    for (int64_t n = 0; n < lines && row < count; ++n) {
      __builtin_prefetch(static_cast<const char*>(rows[row]) + at, 0, 2);
      at += 64;
      if (at >= end) at = begin, ++row;
    }
  }
};
// Terms of a sum between two calls of `fetch`.
constexpr int64_t kTermsPerFetch = 32;

// Panels that come into the cache while others are multiplied: a line for each term, or pair of
// terms, of a tile's sums.
struct NextPanels {
  const char *at, *end;

  inline __attribute__((always_inline)) void fetch() {
    __builtin_prefetch(at);
    at += at < end ? 64 : 0;
  }
};

// c[r][first column ...] (+)= sum over k of a[r][k_begin + k] * panel[k] + bias, r < rows, k < K.
template <typename T, typename C>
struct PanelProduct {
  const T* const* a;
  int64_t rows, k_begin, K;
  const T* panel;
  PanelShape shape;
  C* const* c;
  bool accumulate;
  const State_t<T>* bias = nullptr;  // [N], not read with accumulate
  // So many panels of `vectors` vectors side by side, whose columns together are those of `shape`.
  int64_t panels = 1, panel_stride = 0;
  NextPanels* next = nullptr;  // read where Target::fetches_next_panels
};

// The same for one vector of columns that lie unpacked: columns[n][k]. Meanwhile `next`, where the
// next vector of columns begins, comes into the cache, if it is not nullptr.
template <typename T>
struct UnpackedProduct {
  const T* const* a;
  int64_t rows, k_begin, K;
  const T* const* columns;
  const T* next;
  State_t<T>* const* c;
  bool accumulate;
  const State_t<T>* bias;  // [lanes], or nullptr
};

// Bytes in front of a row that was encoded as int8: its scale.
constexpr int64_t kInt8RowHeader = 64;
constexpr int32_t kUnsigned = 128;  // added to its elements, it makes them unsigned
// Terms of a sum over k for which a panel stays in the L2 cache.
constexpr int64_t kPiece = 512;
constexpr int64_t kPanelRows = 3;  // `panel_rows` of our own tiles

// How a panel is laid out.
struct PanelFormat {
  int lanes;    // columns in a vector
  int vectors;  // of the widest panel
  // Neighboring k that lie together, and elements in front of a panel for each column.
  int64_t together = 1, header = 0;
  // K is filled up with zeros; what is there in a row has no effect.
  int64_t padding = 1;
};

// From multiply_and_fetch on, nullptr where only weights that are packed once are multiplied.
template <typename T>
struct ProductFunctions {
  using A = State_t<T>;
  // Columns `shape` of rows [k_begin, k_begin + K) of a matrix into a panel.
  void (*pack)(const MatrixRows<Given_t<T>>& matrix, int64_t k_begin, int64_t K,
               const PanelShape& shape, T* panel);
  void (*multiply)(const PanelProduct<T, A>& product);
  void (*multiply_and_fetch)(const PanelProduct<T, A>& product, Prefetch* prefetch);
  // c rounded to T once, over the whole of K.
  void (*multiply_rounded)(const PanelProduct<T, T>& product);
  // The end of a product, for a library that left the sums in a buffer: whole vectors of a row,
  // rows `stride` apart. The first is of int8 alone.
  void (*put_rows)(const PanelProduct<T, A>& product, const Sum_t<T>* sums, int64_t stride);
  void (*put_rows_rounded)(const PanelProduct<T, T>& product, const A* sums, int64_t stride);
  void (*multiply_unpacked)(const UnpackedProduct<T>& product);
  // Columns [begin, end) of `rows` rows, transposed: to[column - begin][row].
  void (*transpose)(const T* const* from, int64_t rows, int64_t begin, int64_t end, T* to);
  // sums[r] (+)= sum over k < K of rows[r][k], r < count.
  void (*sum_rows)(const T* const* rows, int64_t count, int64_t K, A* sums, bool accumulate);
  // Called in a thread after a series of products, or nullptr.
  void (*end_thread)() = nullptr;
};

// What makes a product fast; no result depends on it.
struct ProductTuning {
  int rows;  // of a register tile: pass rows by a multiple of it
  // Sums over varying numbers of rows are padded to a multiple of so many terms: a library may keep
  // a kernel for every number of terms.
  int64_t terms = 1;
  // How many bytes of the input's part of the gates a walk computes ahead. The faster the product,
  // the more it matters that they are still in cache.
  int64_t bytes_ahead = 2 << 20;
  // A product of fewer rows is bound by loading its panel from the L2 cache.
  int64_t panel_rows = kPanelRows;
  // How many panels `multiply` takes at a time. With one row the sums of a single panel are too few
  // to hide the latency of multiply-adds.
  int64_t panels = 1, panels_of_one_row = 1;
  int64_t panels_for(int64_t rows) const { return rows == 1 ? panels_of_one_row : panels; }
  const char* instructions = nullptr;  // the instruction set, for people
};

// For weights in fewer bits than the layer has: what a row of the layer becomes before it is
// multiplied with them, of how many elements, and the terms of a sum that it may be cut into.
template <typename T>
struct RowEncoding {
  void (*encode)(const State_t<T>* row, int64_t K, T* to) = nullptr;
  int64_t (*encoded_size)(int64_t K) = nullptr;
  int32_t excess = 0;  // by how much the elements of a row encoded as int8 are shifted up
  int64_t piece = kPiece;
};

template <typename T>
struct Product : PanelFormat, ProductFunctions<T>, ProductTuning, RowEncoding<T> {};

}  // namespace fastlstm
