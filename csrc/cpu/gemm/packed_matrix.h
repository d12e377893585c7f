// A matrix packed into the panels of a product, and products of many rows with it over all threads.
#pragma once
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <variant>
#include <vector>

#include "cpu/products/product.h"
#include "cpu/scratch.h"
#include "cpu/targets/kernels.h"
#include "parts.h"
#include "pointers.h"

namespace fastlstm {

// Elements [begin, end) of `count` rows, spread over a product of `rows` rows and `terms` terms.
template <typename T>
Prefetch prefetch_during(const Product<T>& product, int64_t rows, int64_t terms,
                         const T* const* next, int64_t count, int64_t begin, int64_t end) {
  const int64_t first = begin * sizeof(T), last = end * sizeof(T);
  const int64_t lines = count * divide_up(last - first, 64);
  const int64_t times = std::max<int64_t>(rows / product.rows * (terms / kTermsPerFetch), 1);
  return {reinterpret_cast<const void* const*>(next), count, first, last, divide_up(lines, times)};
}

// Rows [k_begin, k_begin + K) of a matrix with N columns.
template <typename T>
struct Matrix {
  MatrixRows<Given_t<T>> rows;
  int64_t k_begin, K, N;
};

template <typename T>
class PackedMatrix {
 public:
  // A panel is at most as wide as the product takes, and there are as many for each of `pieces`
  // threads if there are so many vectors.
  PackedMatrix(const Matrix<T>& matrix, int64_t pieces);
  // Panels that were packed before, `offset` bytes into `data`.
  PackedMatrix(int64_t K, int64_t N, int64_t pieces, const at::Tensor& data, int64_t offset);

  const Product<T>& product() const { return product_; }
  const std::vector<PanelShape>& panels() const { return panels_; }
  int64_t panel_count() const { return static_cast<int64_t>(panels_.size()); }
  const T* panel(int64_t index) const { return first_ + offsets_[index]; }
  int64_t width(int64_t index) const { return panels_[index].vectors * product_.lanes; }
  T* panel(int64_t index) { return first_ + offsets_[index]; }
  int64_t size() const { return offsets_.back(); }  // elements of all panels
  int64_t K() const { return K_; }
  int64_t N() const { return panels_.back().first_column + panels_.back().columns; }
  // Panels that a product takes at a time, and their columns.
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
  // Panels [begin, end) as memory to fetch.
  NextPanels memory(const Range& panels) const {
    const char* const first = reinterpret_cast<const char*>(panel(0));
    const auto offset = [&](int64_t p) { return offsets_[p] * int64_t(sizeof(T)); };
    return {first + offset(panels.begin), first + offset(panels.end)};
  }
  // The panels of one of `groups` groups of threads, and the columns of some panels.
  Range share(int64_t group, int64_t groups) const {
    return part_of(panels_.size(), group, groups);
  }
  Range columns(const Range& panels) const;

 private:
  PackedMatrix(int64_t K, int64_t N, int64_t pieces);
  Group next_group(const Range& panels, int64_t rows, bool backwards) const;
  const Product<T>& product_ = product_of<T>();
  int64_t K_;
  std::vector<PanelShape> panels_;
  std::vector<int64_t> offsets_;  // of the panels, and where the last one ends
  at::Tensor data_;
  T* first_ = nullptr;  // panel
};

// A matrix [K,N] that `multiply` packs panel by panel into the cache: for a single product of few
// rows, where packed panels would cross memory twice more.
template <typename T>
struct MatrixInPlace {
  explicit MatrixInPlace(const at::Tensor& w)
      : w(w), rows(row_pointers(const_data<T>(w), w.size(0), w.size(1))) {}
  int64_t K() const { return w.size(0); }
  int64_t N() const { return w.size(1); }
  at::Tensor w;
  std::vector<const T*> rows;
};
template <typename T>
using AnyMatrix = std::variant<PackedMatrix<T>, MatrixInPlace<T>>;

// W [rows,K], contiguous, as itself or, transposed, as the matrix W^T [K,rows].
template <typename T>
PackedMatrix<T> pack(const at::Tensor& w, bool transposed, int64_t pieces);

// W [4H,K] as the matrix W^T, its columns in the order vector of units, gate, unit: panels
// [K][4][lanes], or several narrower ones, hold the four gates of the same units. The last vector
// is filled up with zeros.
template <typename T>
PackedMatrix<T> pack_gates(const at::Tensor& w);
inline int64_t gate_columns(int64_t hidden_size, int64_t lanes) {
  return 4 * lanes * divide_up(hidden_size, lanes);
}
// b_ih + b_hh [4H] in that order, for a product of T; undefined if they are.
template <typename T>
at::Tensor order_gates(const at::Tensor& b_ih, const at::Tensor& b_hh);

// c[r] (+)= a[r] * matrix, r < rows, as sums, or rounded to T once at the end; bias [N] of sums or
// nullptr (not with accumulate).
template <typename T, typename C>
void multiply(const std::vector<const T*>& a, const PackedMatrix<T>& matrix,
              const std::vector<C*>& c, bool accumulate, const State_t<T>* bias = nullptr);
template <typename T, typename C>
void multiply(const std::vector<const T*>& a, const MatrixInPlace<T>& matrix,
              const std::vector<C*>& c, bool accumulate);

// The same for the columns of `panels` in one thread, c[r] = a[r] * matrix.
template <typename T, typename C>
void multiply_panels(const std::vector<const T*>& a, int64_t rows, const PackedMatrix<T>& matrix,
                     const Range& panels, const std::vector<C*>& c);

// The same into rows of T, of 16 bits, from products in float32.
template <typename T>
void multiply_narrowed(const std::vector<const State_t<T>*>& a, const AnyMatrix<State_t<T>>& matrix,
                       const std::vector<T*>& c, bool accumulate);

// Rows of T from those of a product of W: sums where T is the dtype of sums, else rounded.
template <typename T, typename W>
void multiply_into(const std::vector<const W*>& a, const AnyMatrix<W>& matrix,
                   const std::vector<T*>& c, bool accumulate) {
  if constexpr (std::is_same_v<T, State_t<W>> || std::is_same_v<T, W>)
    std::visit([&](const auto& w) { multiply<W>(a, w, c, accumulate); }, matrix);
  else
    multiply_narrowed<T>(a, matrix, c, accumulate);
}

// The sums of a weight gradient: c[m][n] (+)= sum over r of a[r][m] * b[r][n] for matrices b side
// by side (input and previous hidden state), and, if not nullptr, sums[m] (+)= sum over r of
// a[r][m] (the bias), so that `a` is read once.
template <typename T>
struct GradientPart {
  std::vector<const T*> b;  // R rows of N columns, or the first of them if the others are zero
  int64_t N;
  State_t<T>* c;  // [M,N]
};
template <typename T>
void multiply_transposed(std::vector<const T*> a, int64_t M, std::vector<GradientPart<T>> parts,
                         State_t<T>* sums, bool accumulate);

// The sums of a few panels for some rows, in a buffer that stays in the L1 cache until the cell
// equations have read it. A thread has one of its own.
template <typename T>
class PanelSums {
  using A = State_t<T>;

 public:
  // For at most `rows` rows, and for panels of `vectors` vectors together.
  PanelSums(int64_t rows, int64_t vectors)
      : stride_(vectors * product_of<T>().lanes),
        buffer_(scratch<A>(rows * stride_)),
        rows_(row_pointers(data<A>(buffer_), rows, stride_)) {}

  int64_t rows() const { return rows_.size(); }
  int64_t stride() const { return stride_; }
  // Rows of a times the panels [first, last) side by side, `piece` terms of the sums at a time, and
  // the bias of their columns, or nullptr. Rows that are `zeros` are not multiplied where there are
  // no others, so that they may meet an infinite weight or not. Meanwhile `next` comes into the
  // cache.
  const A* multiply(const PackedMatrix<T>& matrix, const Range& panels, const T* const* a,
                    int64_t rows, int64_t piece, const T* zeros, const A* bias = nullptr,
                    NextPanels* next = nullptr);

 private:
  int64_t stride_;
  at::Tensor buffer_;
  std::vector<A*> rows_;
};

}  // namespace fastlstm
