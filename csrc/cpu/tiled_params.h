// What the tiled engine hands to its kernels: rows as pointers, so that dense, packed, ragged,
// reset and batch-first input are all the same walk. A row is one batch row at one step.
#pragma once
#include <cstdint>

namespace fastlstm {

template <typename T, typename A>
struct ForwardRow {
  const T* h_prev;   // [K] h_{t-1}, an earlier output, h_0, or `zeros`; times h_mask
  const A* x_gates;  // [4H] x_t W_ih^T + b; may be `gates`
  T* gates;          // [4H] activated i, f, g, o out, or nullptr
  const A* c_prev;   // [H]
  A* c;              // [H] may be c_prev
  T* h;              // [H]
  // Zoneout, or nullptr: the shares of the states before that stay.
  const T* zoneout_h = nullptr;  // [H]
  const T* zoneout_c = nullptr;  // [H]
  const T* h_before = nullptr;   // [H] h_{t-1} without h_mask, where zoneout_h is
};

template <typename T, typename A>
struct BackwardRow {
  const T* d_gates_next;  // [4H] of the step after this one, or `zeros` where none comes back
  const T* d_output;      // [H] dL/dh_t from outside, or zeros
  const T* d_h_n;         // [H] dL/dh_n if this is the row's last step, else zeros
  const A* d_cells;       // [H] dL/dc_t from outside, or zeros
  const T* gates;         // [4H]
  const A* c;             // [H]
  const A* c_prev;        // [H]
  A* dc;                  // [H] dL/dc_t in, dL/dc_{t-1} out
  T* d_gates;             // [4H] out
  bool reset;             // state was zeroed before this step: dL/dc_{t-1} = 0
  const T* h_mask;        // [H] what h_t was multiplied with on its way into W_hh, or nullptr
  // Zoneout, or nullptr.
  const T* zoneout_h;  // [H]
  const T* zoneout_c;  // [H]
  A* kept_dh;  // [H] where zoneout_h is: dL/dh_t that the step after let through in, its own out
};

// A bfloat16 panel holds pairs: two neighbouring k of the same column lie together, as the dot
// product instruction wants them, and an odd K is filled up with zeros.
// A [K,N] matrix cut into panels of a few vectors of columns, each panel contiguous: [K][width].
// Columns beyond N are zero.
struct PanelShape {
  int64_t first_column, columns, vectors;  // columns <= vectors * lanes = width
};

// Memory that comes into the L2 cache while a product is computed, a few lines at a time, which
// wait for memory beside the arithmetic.
struct Ahead {
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
constexpr int64_t kTermsAhead = 32;

// The kernels of one dtype for one instruction set.
template <typename T, typename A>
struct TiledKernels {
  int lanes;  // columns in a vector
  int rows;   // rows that one register tile holds

  // Columns [first, first + columns) of a K x N matrix into a panel [K][vectors * lanes].
  // matrix[k] is row k; where transposed, matrix[n] is column n.
  void (*pack)(const T* const* matrix, bool transposed, int64_t k_begin, int64_t K,
               const PanelShape& shape, T* panel);
  // Columns [begin, end) of `rows` rows, transposed: to[column - begin][row].
  void (*transpose)(const T* const* from, int64_t rows, int64_t begin, int64_t end, T* to);
  // c[r][first column ...] (+)= sum over k of a[r][k_begin + k] * panel[k]; bias [N] and
  // `ahead` may be nullptr.
  void (*multiply)(const T* const* a, int64_t rows, int64_t k_begin, int64_t K, const T* panel,
                   const PanelShape& shape, A* const* c, bool accumulate, const A* bias,
                   Ahead* ahead);
  // The same for one vector of columns that lie unpacked: columns[n][k]. Meanwhile `next`, where
  // the next vector of columns begins, comes into the cache.
  void (*multiply_unpacked)(const T* const* a, int64_t rows, int64_t k_begin, int64_t K,
                            const T* const* columns, const T* next, A* const* c, bool accumulate,
                            const A* bias);
  // The same as multiply, c rounded to T: for bfloat16, over the whole of K at once.
  void (*multiply_rounded)(const T* const* a, int64_t rows, int64_t k_begin, int64_t K,
                           const T* panel, const PanelShape& shape, T* const* c, bool accumulate,
                           const A* bias, Ahead* ahead);
  // sums[r] (+)= sum over k < K of rows[r][k], r < count.
  void (*sum_rows)(const T* const* rows, int64_t count, int64_t K, A* sums, bool accumulate);
  // One step of `rows` rows for the units [unit, unit + units), units <= lanes. The panel holds
  // the four gates of each: [K][4][lanes]. Rows that are `zeros` [K] are not multiplied where a
  // tile has no others.
  void (*forward)(const ForwardRow<T, A>* row, int64_t rows, int64_t K, const T* panel,
                  int64_t unit, int64_t units, int64_t hidden_size, const T* zeros);
  // The same backward, for a panel of W_hh's columns [K = 4H][width].
  void (*backward)(const BackwardRow<T, A>* row, int64_t rows, int64_t K, const T* panel,
                   const PanelShape& shape, int64_t hidden_size, const T* zeros);
};

}  // namespace fastlstm
