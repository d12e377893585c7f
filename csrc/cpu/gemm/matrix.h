// A matrix with the product that multiplies rows with it, in one thread, and products of many rows
// over all threads.
#pragma once
#include <ATen/core/Tensor.h>
#include <c10/util/SmallVector.h>

#include <algorithm>
#include <vector>

#include "cpu/plan.h"
#include "cpu/products/gemm_kernels.h"
#include "cpu/scratch.h"
#include "parts.h"
#include "pointers.h"

namespace fastlstm {

// The elements [K,N] of a matrix: its rows, or its columns if `transposed`, in memory that `owner`
// holds. A matrix that lies as it is has no lines: it is found in `owner` [K,N], or [N,K] if
// transposed, where N are so many gates side by side, whose vectors take turns.
struct MatrixSource {
  std::vector<const void*> lines;
  bool transposed = false;
  int64_t K = 0, N = 0;
  at::Tensor owner = {};
  int64_t gates = 1;

  MatrixRows rows() const { return {lines.data(), transposed}; }
};

// The destination of a product's sums: a row each, from the column of the matrix on, or whole
// vectors from the first of the panels on. The bias is not read if they accumulate; rounded sums,
// of 16 bits, need the whole of K at once.
struct Destination {
  void* const* rows;
  const void* bias = nullptr;
  bool accumulate = false, c_is_16_bit = false, whole_vectors = false;
};

// In place of a number of pieces: panels are as wide as they can be, and all are multiplied
// together.
constexpr int64_t kAllTogether = 0;

// Columns cut into panels of a few vectors, wherever their elements are.
class Matrix {
 public:
  // A panel is at most as wide as the product takes, and there are as many for each of `pieces`
  // threads if there are so many vectors. Of kAsItLies panels are single vectors if it is
  // transposed, else as wide as kLineBytes.
  Matrix(const GemmKernels& gemm, MatrixSource elements, int64_t pieces,
         MatrixForm form = MatrixForm::kPanels);
  // Prepacked panels, `offset` bytes into `data`.
  Matrix(const GemmKernels& gemm, int64_t K, int64_t N, int64_t pieces, const at::Tensor& data,
         int64_t offset);

  const GemmKernels& gemm() const { return *gemm_; }
  int64_t K() const { return K_; }
  int64_t N() const { return N_; }
  MatrixForm form() const { return form_; }

  int64_t panel_count() const { return panel_count_; }
  // The width of the widest panel, and of the most panels that for_groups takes at a time.
  int64_t max_panel_width() const { return divide_up(parts_, panel_count_) * part_columns_; }
  int64_t max_group_width() const { return max_panel_width() * panels_at_once(1); }
  PanelShape shape(int64_t panel) const {
    const auto [begin, end] = columns({panel, panel + 1});
    return {begin, end - begin, width(panel) / gemm_->lanes};
  }
  int64_t width(int64_t panel) const { return first_column(panel + 1) - first_column(panel); }
  // The panels of one of `groups` groups of threads, and the columns of some panels.
  Range share(int64_t group, int64_t groups) const { return part_of(panel_count(), group, groups); }
  Range columns(const Range& panels) const {
    return {first_column(panels.begin), std::min(first_column(panels.end), N_)};
  }
  // The memory of packed panels.
  char* panel(int64_t index) const { return first_ + first_column(index) * bytes_of_column(); }
  int64_t nbytes() const { return parts_ * part_columns_ * bytes_of_column(); }

  // Rows `a` times some panels in one thread, `piece` terms of the sums at a time. `room` is the
  // thread's, for a panel that is packed in use. The panel after it comes into the
  // cache meanwhile.
  void multiply_panels(const Range& panels, const void* const* a, int64_t rows, int64_t piece,
                       const Destination& to, Scratch& room) const;
  // Calls body(panels) for as many panels at a time as a product of `rows` rows takes, from the
  // last to the first if `backwards`.
  void for_panel_groups(Range panels, int64_t rows, const auto& body,
                        bool backwards = false) const {
    while (panels.begin < panels.end) {
      const Range group = next_group(panels, rows, backwards);
      body(group);
      (backwards ? panels.end : panels.begin) = backwards ? group.begin : group.end;
    }
  }

 private:
  int64_t first_column(int64_t panel) const {
    const int64_t part = whole_ ? std::min(panel * whole_, parts_) : panel * parts_ / panel_count_;
    return part * part_columns_;
  }
  int64_t bytes_of_column() const {
    return gemm_->header_bytes + gemm_->bytes(round_up(K_, gemm_->k_multiple));
  }
  void cut_into_panels(int64_t pieces);
  int64_t panels_at_once(int64_t rows) const {
    return form_ == MatrixForm::kInPlace ? 1 : gemm_->panels_at_once_for(rows);
  }
  Range next_group(const Range& panels, int64_t rows, bool backwards) const;
  Columns columns_of(int64_t panel) const;  // of a matrix that lies as it is
  // Fetches terms [k, k + terms) of a panel that is not packed, during a product.
  Prefetch fetch(int64_t panel, int64_t k, int64_t terms, const PanelProduct& during) const;
  // Terms [k, k + terms) of rows with some panels of one width.
  PanelProduct product_of(const Range& panels, const void* const* a, int64_t rows, int64_t k,
                          int64_t terms, const Destination& to, int64_t origin) const;
  void multiply_packed(const Range& panels, const void* const* a, int64_t rows, int64_t piece,
                       const Destination& to) const;
  void multiply_in_use(const Range& panels, const void* const* a, int64_t rows, int64_t piece,
                       const Destination& to, Scratch& room) const;
  void multiply_as_it_lies(const Range& panels, const void* const* a, int64_t rows, int64_t piece,
                           const Destination& to) const;
  void multiply_unpacked_rows(const Range& panels, const void* const* a, int64_t rows,
                              int64_t piece, const Destination& to, Scratch& room) const;

  const GemmKernels* gemm_;
  int64_t K_, N_;
  MatrixForm form_ = MatrixForm::kPanels;
  int64_t part_columns_, parts_, panel_count_;  // a panel is one part, or a few
  int64_t whole_;  // parts of every panel but the last, if they are multiplied together; else 0
  Scratch own_;    // the panels that were packed for a call
  at::Tensor prepacked_;   // the owner of others
  char* first_ = nullptr;  // panel
  MatrixSource elements_;  // unless packed
};

// W [rows,K], contiguous, as itself or, transposed, as the matrix W^T [K,rows].
Matrix matrix_of(const GemmKernels& gemm, const at::Tensor& w, bool transposed, int64_t pieces,
                 MatrixForm form = MatrixForm::kPanels);

// W [4H,K] as the matrix W^T, its columns in the order vector of units, gate, unit: panels
// [K][4][lanes], or several narrower ones, hold the four gates of the same units. The last vector
// is filled up.
Matrix gate_matrix_of(const GemmKernels& gemm, const at::Tensor& w,
                      MatrixForm form = MatrixForm::kPanels);
inline int64_t gate_columns(int64_t hidden_size, int64_t lanes) {
  return 4 * lanes * divide_up(hidden_size, lanes);
}

// c[r] = a[r] * some panels, in one thread.
inline void serial_gemm(const std::vector<const void*>& a, int64_t rows, const Matrix& matrix,
                        const Range& panels, const std::vector<void*>& c) {
  Scratch room;
  matrix.multiply_panels(panels, a.data(), rows, matrix.K(), {c.data()}, room);
}

// c[r] (+)= a[r] * matrix over all threads.
void parallel_gemm(const std::vector<const void*>& a, const Matrix& matrix, const Destination& to);

// multiply() into rows of T: the sums, or rounded to 16 bits once at the end.
template <typename T>
void parallel_gemm_into(const std::vector<const void*>& a, const Matrix& matrix,
                        const std::vector<void*>& c, bool accumulate);

// The sums of a weight gradient, of rows as the product packs them: c[m][n] (+)= sum over r of
// a[r][m] * b[r][n] for matrices b side by side (input and previous hidden state), and, if not
// nullptr, sums[m] (+)= sum over r of a[r][m] (the bias), so that `a` is read once.
struct WeightGradient {
  std::vector<const void*> b;  // R rows of N columns, or the first of them if the others are zero
  int64_t N;
  void* c;  // [M,N] of sums
};
void weight_gradient_gemm(const GemmKernels& gemm, const std::vector<const void*>& a, int64_t M,
                          const std::vector<WeightGradient>& parts, void* sums, bool accumulate);

// The sums of a few panels for some rows, in a buffer that stays in the L1 cache until the cell
// equations have read it. A thread has one of its own.
class Accumulators {
 public:
  // Room for `rows` rows, and for panels of `vectors` vectors together.
  Accumulators(const GemmKernels& gemm, int64_t rows, int64_t vectors)
      : stride_(vectors * gemm.lanes),
        bytes_of_row_(stride_ * bytes_of(gemm.sum_dtype)),
        buffer_(rows * bytes_of_row_) {
    for (int64_t r = 0; r < rows; ++r) rows_.push_back(buffer_.data<char>() + r * bytes_of_row_);
  }

  int64_t rows() const { return rows_.size(); }
  int64_t stride() const { return stride_; }
  // Rows of a times some panels side by side, plus the bias of their columns, or nullptr. Rows that
  // are `zeros` are not multiplied where there are no others, so that they may meet an infinite
  // weight or not.
  const void* multiply(const Matrix& matrix, const Range& panels, const void* const* a,
                       int64_t rows, int64_t piece, const void* zeros, const void* bias = nullptr);

 private:
  int64_t stride_, bytes_of_row_;
  Scratch buffer_, room_;
  c10::SmallVector<void*, 16> rows_;
};

}  // namespace fastlstm
