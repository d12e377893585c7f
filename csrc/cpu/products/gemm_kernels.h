// GEMM kernels for one format of weights: the layout of its panels, and functions that pack a
// matrix into panels and multiply rows by panels in one thread. Each instruction set has its own
// GemmKernels for each format, and a plan chooses among them. Nothing here knows of an LSTM.
#pragma once
#include "cpu/dtypes.h"

namespace fastlstm {

// A panel of a matrix [K,N]: neighboring columns, stored as [K][width] with width = vectors *
// lanes. Columns that do not exist are zeros. A panel of bfloat16 is [K / 2][width][2]: two terms
// of a column form a pair, as dot product instructions take them. A zero completes the last pair if
// K is odd. A panel of int8 is [K / 4][width][4] after a header (int8_tiles.h).
struct PanelShape {
  int64_t first_column, columns, vectors;  // columns: those that exist, at most the width
};

// A matrix [K,N] as pointers: rows[k] to each row, or, if `transposed`, rows[n] to each column.
struct MatrixRows {
  const void* const* rows;
  bool transposed;
};

// The part of a matrix from which the next panel will be packed. It is fetched into the L2 cache
// during a product, so that memory and arithmetic overlap.
struct Prefetch {
  const void* const* rows;                  // [count], or columns, if the matrix is transposed
  int64_t count, begin, end;                // bytes [begin, end) of each row are fetched
  int64_t lines_per_call;                   // cache lines that one call of fetch() prefetches
  int64_t next_row = 0, next_byte = begin;  // of the next cache line

  inline __attribute__((always_inline)) void fetch() {
    for (int64_t n = 0; n < lines_per_call && next_row < count; ++n) {
      __builtin_prefetch(static_cast<const char*>(rows[next_row]) + next_byte, 0, 2);
      next_byte += 64;
      if (next_byte >= end) next_byte = begin, ++next_row;
    }
  }
};
// The number of terms that a kernel multiplies between two calls of fetch().
constexpr int64_t kTermsPerFetch = 32;

// The arguments of a kernel that multiplies rows by neighboring panels. For row r and column n:
//   c[r][n] = (accumulate ? c[r][n] : bias[n]) + sum of a[r][k_begin + k] * panel[k][n] over k < K
struct PanelProduct {
  const void* const* a;  // [rows], encoded if the kernels require it
  int64_t rows, k_begin, K;
  const void* panel;  // the header if there is one, otherwise the first of the K terms
  PanelShape shape;   // `columns` counts the columns of all panels, `vectors` those of one panel
  void* const* c;     // [rows], of sum_dtype, or of 16 bits if c_is_16_bit
  bool accumulate;
  const void* bias = nullptr;    // [N] of sum_dtype, or nullptr for zeros
  int64_t panels = 1;            // at most panels_at_once for AMX, any number for other kernels
  int64_t panel_stride = 0;      // bytes from one panel to the next
  Prefetch* prefetch = nullptr;  // only a hint
  bool c_is_16_bit = false;      // sums are rounded to the dtype of a; K must be all terms
  bool backwards = false;        // begin with the last panel, which may be in the cache; a hint
};

// The bytes in front of a row that is encoded as int8. The first four are the row's scale.
constexpr int64_t kInt8RowHeader = 64;

struct GemmLayout {
  Format format;                      // of panels
  Format source_format;               // of a matrix before it is packed
  Dtype sum_dtype = Dtype::kFloat32;  // of the sums over k, and of the bias
  int64_t element_bits;               // the same in a panel and in source_format
  int64_t lanes;                      // columns in a vector
  int max_vectors;                    // of the widest panel
  int vectors_multiple = 1;           // the vectors of each panel are a multiple of this
  int64_t header_bytes = 0;           // in front of a panel, for each of its columns
  int64_t k_multiple = 1;             // in panels K is padded with zeros to a multiple of this
  int64_t kc = 512;                   // KC: terms multiplied at a time; their panel fits into L2
  int32_t zero_point = 0;             // added to each element of a row that is encoded as int8

  int64_t bytes(int64_t elements) const { return elements * element_bits / 8; }
  int64_t max_width() const { return max_vectors * lanes; }
  bool multiplies_source_rows() const { return format == source_format; }
  // Whether rows of a dtype are multiplied without encoding.
  bool takes(Dtype dtype) const { return multiplies_source_rows() && format_of(dtype) == format; }
};

// Column n of a panel with `width` columns of K terms. `panel` points to the header.
struct PanelColumn {
  char* panel;
  int64_t width, K, n;
};

// `count` columns of a matrix that is not packed. If the matrix is transposed, its columns lie
// `stride` elements apart, otherwise its rows do. In c the sums of neighboring vectors of columns
// are `vectors_apart` vectors apart.
struct UnpackedColumns {
  const void* first;
  int64_t stride, count, vectors_apart = 1;
};

// A kernel that a format does not need is nullptr.
struct GemmFunctions {
  // Packs terms [k_begin, k_begin + K) of the columns `shape`. `panel` points behind the header.
  void (*pack)(const MatrixRows& matrix, int64_t k_begin, int64_t K, const PanelShape& shape,
               void* panel);
  void (*multiply)(const PanelProduct& product);

  // Encodes a row [K] of float32 as `multiply` takes it, into encoded_bytes(K) bytes.
  void (*encode)(const void* row, int64_t K, void* to);
  int64_t (*encoded_bytes)(int64_t K);

  // For prepacked weights. put_scale writes the scale of a column and the sum of its elements to
  // the header of the panel. unpack reads the elements [K] of a column, and the scale, if any.
  void (*put_scale)(const PanelColumn& column, float scale);
  void (*unpack)(const PanelColumn& column, void* elements, float* scale);

  // For bfloat16 and int8: writes sums from a buffer to c. Sums of bfloat16 are float32 and are
  // rounded. Sums of int8 are int32 and are scaled. Rows have whole vectors and lie `stride` apart.
  void (*put_rows)(const PanelProduct& product, const void* sums, int64_t stride);

  // The next four are for training, and for weights that are not prepacked.
  // Like `multiply`, with a vector of columns of a transposed matrix in place of a panel, or up to
  // unpacked_vectors_of_one_row of them if there is one row. The sums of lanes without a column are
  // arbitrary. `next`: the terms of the next call, to be prefetched.
  void (*multiply_unpacked_columns)(const PanelProduct& product, const UnpackedColumns& columns,
                                    const void* next);
  // Like `multiply`, with columns of a matrix that is not transposed in place of a panel. `buffer`
  // has 2 * rows * width elements.
  void (*multiply_unpacked_rows)(const PanelProduct& product, const UnpackedColumns& columns,
                                 void* buffer);
  // Transposes columns [begin, end) of a matrix [rows,N] of source_format to rows in the format of
  // `multiply`: to[column - begin][row].
  void (*transpose)(const void* const* from, int64_t rows, int64_t begin, int64_t end, void* to);
  // Computes sums[r] = or += the sum of rows[r][k] over k < K, for r < count.
  void (*sum_rows)(const void* const* rows, int64_t count, int64_t K, void* sums, bool accumulate);

  void (*end_thread)();  // releases AMX's tiles after a thread's series of products
};

struct GemmKernels;

// Settings for speed. They change results at most by rounding errors.
struct GemmTuning {
  double relative_speed = 1;      // multiply-adds in a unit of time, compared with float32
  int64_t tile_rows;              // MR: a product is fastest if its rows are a multiple of MR
  int64_t bytes_ahead = 2 << 20;  // of x_gates computed ahead of a walk; less for fast kernels
  // Fewer rows than this take the same time, because a product waits for panels from the L2 cache.
  // The second number is for rows that each thread encodes for itself.
  int64_t min_rows_per_panel_load = 3, min_encoded_rows_per_panel_load = 3;
  double l2_share = 0.75;  // of the L2 cache for the panels of a step; rows and sums need the rest
  int64_t panels_at_once = 1;      // in one call of `multiply`: at least four gates of a vector
  int64_t max_rows_in_place = 16;  // of a single step: with more, packing pays
  int64_t unpacked_vectors_of_one_row = 1;  // several hide latency but read more columns at once
  const char* instruction_set = nullptr;    // a name for users
  // Kernels for fewer rows than the limit, with the same panels and the same bits.
  int64_t few_rows_limit = 0;
  const GemmKernels* few_rows_gemm = nullptr;
};

// The columns of one call of `multiply` for most kernels: with fewer columns, preparing the call
// takes a larger share of its time.
constexpr int64_t kColumnsAtOnce = 256;

struct GemmKernels : GemmLayout, GemmFunctions, GemmTuning {
  bool trains() const { return transpose; }
  // The bytes of a row of K elements that `transpose` makes.
  int64_t bytes_of_row(int64_t K) const {
    return multiplies_source_rows() ? bytes(K) : encoded_bytes(K);
  }
};

// The GEMM kernels for each format, or nullptr.
struct GemmTable {
  const GemmKernels* by_format[kFormats];
  const GemmKernels*& operator[](Format format) { return by_format[static_cast<int>(format)]; }
  const GemmKernels* operator[](Format format) const { return by_format[static_cast<int>(format)]; }
};

}  // namespace fastlstm
