// A product: how a matrix is packed into panels and how rows are multiplied with them, for one
// format. A value, so that each instruction set or tile shape brings its own, and a plan
// chooses among them. Nothing here knows of an LSTM.
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
struct MatrixRows {
  const void* const* rows;
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

// c[r][first column ...] (+)= sum over k of a[r][k_begin + k] * panel[k] + bias, r < rows, k < K.
// Rows of `a` as the product takes them; c and bias are of its sums, or c of what they are rounded
// to.
struct PanelProduct {
  const void* const* a;
  int64_t rows, k_begin, K;
  const void* panel;
  PanelShape shape;
  void* const* c;
  bool accumulate;
  const void* bias = nullptr;  // [N], not read with accumulate
  // The number of panels of `vectors` vectors side by side, at most the product's, whose columns
  // together are those of `shape`, and the bytes from one to the next.
  int64_t panels = 1, panel_stride = 0;
  Prefetch* prefetch = nullptr;  // read by products that train
  bool c_is_16_bit =
      false;  // c is of 16 bits, rounded once, over the whole of K, by such a product
};

// Bytes in front of a row that was encoded as int8: its scale.
constexpr int64_t kInt8RowHeader = 64;
constexpr int32_t kUnsignedZeroPoint = 128;  // added to its elements, it makes them unsigned
// Terms of a sum over k for which a panel stays in the L2 cache.
constexpr int64_t kDefaultKc = 512;

// How rows and panels are laid out, and in which pieces they are summed.
struct GemmLayout {
  Format format;  // of their elements
  Format
      source_format;  // of matrices before they are packed, and of rows that are taken as they are
  Dtype sum_dtype = Dtype::kFloat32;
  int64_t element_bits;      // of an element in a panel
  int64_t lanes;             // columns in a vector
  int max_vectors;           // of the widest panel
  int vectors_multiple = 1;  // vectors of a panel are a multiple of it
  int64_t header_bytes = 0;  // bytes in front of a panel for each column
  // K is filled up with zeros; what is there in a row has no effect.
  int64_t k_multiple = 1;
  int64_t kc = kDefaultKc;  // terms of a sum that it may be cut into
  int32_t zero_point = 0;   // by how much the elements of a row encoded as int8 are shifted up

  int64_t bytes(int64_t K) const {
    return K * element_bits / 8;
  }  // of K terms of a column, all padding
  bool takes(Dtype rows) const {
    return format == source_format && format_of(rows) == source_format;
  }
};

// Column n of a panel of `width` columns of K terms.
struct PanelColumn {
  char* panel;
  int64_t width, K, n;
};

// Columns of a matrix as it lies. Transposed: `count` of a vector's lanes, K terms each, `stride`
// elements apart; the sums of the other lanes are any. Else: `count` columns, terms `stride` apart.
struct Columns {
  const void* first;
  int64_t stride, count;
};

// The functions of a product; from put_rows on, nullptr where only prepacked weights are
// multiplied.
struct GemmFunctions {
  // Columns `shape` of rows [k_begin, k_begin + K) of a matrix into a panel, behind its header.
  void (*pack)(const MatrixRows& matrix, int64_t k_begin, int64_t K, const PanelShape& shape,
               void* panel);
  // Prepacked weights: puts a scale, if there is one, into a column; takes its elements and the
  // scale out of it.
  void (*put_scale)(const PanelColumn& column, float scale);
  void (*unpack)(const PanelColumn& column, void* elements, float* scale);
  void (*multiply)(const PanelProduct& product);
  // A row in the dtype of the sums as `multiply` takes it, and its size; nullptr where rows are
  // taken as they are.
  void (*encode)(const void* row, int64_t K, void* to);
  int64_t (*encoded_bytes)(int64_t K);
  // The end of a product whose sums are in a buffer: whole vectors of a row, rows `stride` apart.
  // Sums of bfloat16 are rounded, those of int8, in int32, scaled.
  void (*put_rows)(const PanelProduct& product, const void* sums, int64_t stride);
  // multiply() with one vector of columns as they lie, `columns` in place of the panel. `next` is
  // where the terms begin that are multiplied afterwards, which come into the cache meanwhile.
  void (*multiply_unpacked_columns)(const PanelProduct& product, const Columns& columns,
                                    const void* next);
  // multiply() with columns of a matrix that is not transposed, as it lies. `room`: memory for
  // twice the sums of whole vectors. nullptr for 16 bits.
  void (*multiply_unpacked_rows)(const PanelProduct& product, const Columns& columns, void* room);
  // Columns [begin, end) of `rows` rows, as they are packed, into rows as they are multiplied:
  // to[column - begin][row].
  void (*transpose)(const void* const* from, int64_t rows, int64_t begin, int64_t end, void* to);
  // sums[r] (+)= sum over k < K of rows[r][k], r < count; nullptr where rows are not taken as they
  // are.
  void (*sum_rows)(const void* const* rows, int64_t count, int64_t K, void* sums, bool accumulate);
  // Called in a thread after a series of products, or nullptr.
  void (*end_thread)();
};

struct GemmKernels;

// The settings that make a product fast; no result depends on them.
struct GemmTuning {
  double relative_speed = 1;  // multiply-adds, compared with float32
  int64_t tile_rows;          // of a register tile: pass rows by a multiple of it
  // How many bytes of the input's part of the gates a walk computes ahead. The faster the product,
  // the more it matters that they are still in cache.
  int64_t bytes_ahead = 2 << 20;
  // A product of fewer rows is bound by loading its panel from the L2 cache. And with rows that
  // each thread encodes for itself, which then costs more than loading fewer panels saves.
  int64_t min_rows_per_panel_load = 3, min_encoded_rows_per_panel_load = 3;
  // The share of the L2 cache that the panels of a step may take; the rest is for rows and sums.
  double l2_share = 0.75;
  // How many panels `multiply` takes at a time. With one row the sums of a single panel are too few
  // to hide the latency of multiply-adds.
  int64_t panels_at_once = 1, panels_at_once_of_one_row = 1;
  const char* instruction_set = nullptr;  // the instruction set, for people
  // Below so many rows another product of the same panels is faster, if there is one: it gives the
  // same bits.
  int64_t few_rows_limit = 0;
  const GemmKernels* few_rows_gemm = nullptr;

  int64_t panels_at_once_for(int64_t rows) const {
    return rows == 1 ? panels_at_once_of_one_row : panels_at_once;
  }
};

struct GemmKernels : GemmLayout, GemmFunctions, GemmTuning {
  // Whether layers are trained with it.
  bool trains() const { return transpose; }
  int64_t max_width() const { return max_vectors * lanes; }                // of the widest panel
  bool multiplies_source_rows() const { return format == source_format; }  // the same rows
  // The bytes of a row of K elements as it is multiplied.
  int64_t bytes_of_row(int64_t K) const {
    return multiplies_source_rows() ? bytes(K) : encoded_bytes(K);
  }
};

// The products of a processor by their format; nullptr where there is none.
struct GemmTable {
  const GemmKernels* by_format[kFormats];

  const GemmKernels*& operator[](Format format) { return by_format[static_cast<int>(format)]; }
  const GemmKernels* operator[](Format format) const { return by_format[static_cast<int>(format)]; }
};

}  // namespace fastlstm
