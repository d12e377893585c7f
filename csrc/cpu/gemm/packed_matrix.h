// A matrix packed into the panels of a product, and products of many rows with it over all threads.
#pragma once
#include <ATen/core/Tensor.h>

#include <vector>

#include "cpu/products/product.h"
#include "cpu/scratch.h"
#include "parts.h"
#include "pointers.h"

namespace fastlstm {

// Elements [begin, end) of `count` rows, spread over a product of `rows` rows and `terms` terms.
Prefetch prefetch_during(const Product& product, int64_t rows, int64_t terms,
                         const void* const* next, int64_t count, int64_t begin, int64_t end);

// Rows [k_begin, k_begin + K) of a matrix with N columns.
struct Matrix {
  MatrixRows rows;
  int64_t k_begin, K, N;
};

class PackedMatrix {
 public:
  // A panel is at most as wide as the product takes, and there are as many for each of `pieces`
  // threads if there are so many vectors.
  PackedMatrix(const Product& product, const Matrix& matrix, int64_t pieces);
  // w [K,N], contiguous, which `multiply` packs panel by panel into the cache: for a single product
  // of few rows, where packed panels would cross memory twice more.
  PackedMatrix(const Product& product, const at::Tensor& w);
  // Panels that were packed before, `offset` bytes into `data`.
  PackedMatrix(const Product& product, int64_t K, int64_t N, int64_t pieces, const at::Tensor& data,
               int64_t offset);

  const Product& product() const { return *product_; }
  // Those of the matrix where they are packed when they are multiplied; else nullptr.
  const void* const* unpacked_rows() const { return rows_.empty() ? nullptr : rows_.data(); }
  const std::vector<PanelShape>& panels() const { return panels_; }
  int64_t panel_count() const { return static_cast<int64_t>(panels_.size()); }
  const char* panel(int64_t index) const { return first_ + offsets_[index]; }
  char* panel(int64_t index) { return first_ + offsets_[index]; }
  int64_t width(int64_t index) const { return panels_[index].vectors * product_->lanes; }
  int64_t nbytes() const { return offsets_.back(); }  // of all panels
  int64_t K() const { return K_; }
  int64_t N() const { return panels_.back().first_column + panels_.back().columns; }
  // Panels that a product takes at a time, their columns, and the bytes from one to the next.
  struct Group {
    int64_t first, count, stride;
    PanelShape shape;
  };
  // Calls body(group) for the panels, as many at a time as a product of `rows` rows takes, from the
  // last to the first if `backwards`.
  void for_groups(Range panels, int64_t rows, const auto& body, bool backwards = false) const {
    while (panels.begin < panels.end) {
      const Group group = next_group(panels, rows, backwards);
      body(group);
      if (backwards)
        panels.end = group.first;
      else
        panels.begin = group.first + group.count;
    }
  }
  // Terms [k, k + terms) of rows `a` with a group.
  PanelProduct product_of(const void* const* a, int64_t rows, int64_t k, int64_t terms,
                          const Group& group) const {
    return {.a = a,
            .rows = rows,
            .k_begin = k,
            .K = terms,
            .panel = panel(group.first) + width(group.first) * product_->bytes(k),
            .shape = group.shape,
            .c = nullptr,
            .accumulate = k > 0,
            .panels = group.count,
            .panel_stride = group.stride};
  }
  // Panels [begin, end) as memory to fetch.
  NextPanels memory(const Range& panels) const {
    return {first_ + offsets_[panels.begin], first_ + offsets_[panels.end]};
  }
  // The panels of one of `groups` groups of threads, and the columns of some panels.
  Range share(int64_t group, int64_t groups) const {
    return part_of(panels_.size(), group, groups);
  }
  Range columns(const Range& panels) const;

 private:
  PackedMatrix(const Product& product, int64_t K, int64_t N, int64_t pieces);
  Group next_group(const Range& panels, int64_t rows, bool backwards) const;
  const Product* product_;
  int64_t K_;
  std::vector<PanelShape> panels_;
  std::vector<int64_t> offsets_;  // of the panels, and where the last one ends, in bytes
  at::Tensor data_;
  char* first_ = nullptr;          // panel
  std::vector<const void*> rows_;  // if unpacked
};

// W [rows,K], contiguous, as itself or, transposed, as the matrix W^T [K,rows].
PackedMatrix pack(const Product& product, const at::Tensor& w, bool transposed, int64_t pieces);

// W [4H,K] as the matrix W^T, its columns in the order vector of units, gate, unit: panels
// [K][4][lanes], or several narrower ones, hold the four gates of the same units. The last vector
// is filled up with zeros.
PackedMatrix pack_gates(const Product& product, const at::Tensor& w);
inline int64_t gate_columns(int64_t hidden_size, int64_t lanes) {
  return 4 * lanes * divide_up(hidden_size, lanes);
}

// c[r] (+)= a[r] * matrix, r < rows, as sums, or rounded to 16 bits, which needs the whole of K at
// once; bias [N] of sums or nullptr (not with accumulate).
void multiply(const std::vector<const void*>& a, const PackedMatrix& matrix,
              const std::vector<void*>& c, bool accumulate, const void* bias = nullptr,
              bool rounds = false);

// The same into rows of T: the sums, or rounded to 16 bits once at the end.
template <typename T>
void multiply_into(const std::vector<const void*>& a, const PackedMatrix& matrix,
                   const std::vector<void*>& c, bool accumulate);

// The same for the columns of `panels` in one thread, c[r] = a[r] * matrix, as sums.
void multiply_panels(const std::vector<const void*>& a, int64_t rows, const PackedMatrix& matrix,
                     const Range& panels, const std::vector<void*>& c);

// The sums of a weight gradient, of rows as the product packs them: c[m][n] (+)= sum over r of
// a[r][m] * b[r][n] for matrices b side by side (input and previous hidden state), and, if not
// nullptr, sums[m] (+)= sum over r of a[r][m] (the bias), so that `a` is read once.
struct GradientPart {
  std::vector<const void*> b;  // R rows of N columns, or the first of them if the others are zero
  int64_t N;
  void* c;  // [M,N] of sums
};
void multiply_transposed(const Product& product, const std::vector<const void*>& a, int64_t M,
                         const std::vector<GradientPart>& parts, void* sums, bool accumulate);

// The sums of a few panels for some rows, in a buffer that stays in the L1 cache until the cell
// equations have read it. A thread has one of its own.
class PanelSums {
 public:
  // For at most `rows` rows, and for panels of `vectors` vectors together.
  PanelSums(const Product& product, int64_t rows, int64_t vectors)
      : stride_(vectors * product.lanes),
        bytes_of_row_(stride_ * bytes_of(product.sums)),
        buffer_(scratch_bytes(rows * bytes_of_row_)),
        rows_(row_pointers(data<char>(buffer_), rows, bytes_of_row_)) {}

  int64_t rows() const { return rows_.size(); }
  int64_t stride() const { return stride_; }
  // Rows of a times the panels [first, last) side by side, `piece` terms of the sums at a time, and
  // the bias of their columns, or nullptr. Rows that are `zeros` are not multiplied where there are
  // no others, so that they may meet an infinite weight or not. Meanwhile `next` comes into the
  // cache.
  const void* multiply(const PackedMatrix& matrix, const Range& panels, const void* const* a,
                       int64_t rows, int64_t piece, const void* zeros, const void* bias = nullptr,
                       NextPanels* next = nullptr);

 private:
  int64_t stride_, bytes_of_row_;
  at::Tensor buffer_;
  std::vector<void*> rows_;
};

}  // namespace fastlstm
