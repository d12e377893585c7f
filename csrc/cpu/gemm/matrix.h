// A matrix of weights for GEMM kernels. It is cut into panels, in one of three forms (MatrixForm in
// cpu/plan.h). multiply_panels computes a product in one thread; parallel_gemm.h uses all threads.
#pragma once
#include <algorithm>

#include "cpu/gemm/gate_order.h"
#include "cpu/plan.h"
#include "cpu/scratch.h"
#include "pointers.h"

namespace fastlstm {

// The elements of a matrix [K,N] before it is packed.
struct MatrixSource {
  std::vector<const void*> rows;  // [K] pointers to rows, or [N] to columns; empty if kInPlace
  bool transposed = false;        // columns are contiguous instead of rows
  int64_t K = 0, N = 0;
  at::Tensor tensor = {};  // owns the elements; contiguous [K,N] or, if transposed, [N,K]
  int64_t gates = 1;       // 4 if the columns are in gate order
};

// Where a product writes its results, and in which order. `rows` and `bias` begin at column 0 of
// the matrix or, if whole_vectors, at the first column of the panels that are multiplied.
struct Destination {
  void* const* rows;
  const void* bias = nullptr;  // of sum_dtype, or nullptr; not read if `accumulate`
  bool accumulate = false;     // the results are added to what is there
  bool c_is_16_bit = false;    // elements of the rows have 16 bits (PanelProduct)
  bool whole_vectors = false;  // columns that pad the last vector are written too
  bool backwards = false;      // begin with the last panel, if the form is kPanels
};

class Matrix {
 public:
  static constexpr int64_t kAllTogether = 0, kInGateOrder = -1;  // values for `groups`
  // Packs the matrix if the form is kPanels; otherwise keeps the source. `groups`: how many groups
  // of threads will share the panels. With enough columns, all groups get equally many panels. With
  // kAllTogether panels are as wide as possible, and one call multiplies all that are equally wide.
  // With kInGateOrder, too, all panels but the last are as wide as possible.
  Matrix(const GemmKernels& gemm, MatrixSource source, int64_t groups,
         MatrixForm form = MatrixForm::kPanels);
  // Takes panels that are `offset` bytes behind the start of `data`.
  Matrix(const GemmKernels& gemm, int64_t K, int64_t N, int64_t groups, const at::Tensor& data,
         int64_t offset);

  const GemmKernels& gemm() const { return *gemm_; }
  int64_t K() const { return K_; }
  int64_t N() const { return N_; }
  MatrixForm form() const { return form_; }

  int64_t panel_count() const { return panel_count_; }
  int64_t width(int64_t panel) const { return first_column(panel + 1) - first_column(panel); }
  int64_t max_panel_width() const { return divide_up(grains_, panel_count_) * grain_columns_; }
  int64_t panels_at_once() const { return panels_at_once_; }  // the most in one call of a kernel
  int64_t max_group_width() const { return max_panel_width() * panels_at_once_; }
  Range panels_of(const Worker& worker, const ThreadGrid& grid) const {
    return part_of(panel_count(), worker.unit_group, grid.unit_groups);
  }
  Range columns(const Range& panels) const {
    return {first_column(panels.begin), std::min(first_column(panels.end), N_)};
  }
  PanelShape shape(int64_t panel) const {
    const auto [begin, end] = columns({panel, panel + 1});
    return {begin, end - begin, width(panel) / gemm_->lanes};
  }
  // The memory of a panel, with its header; only if the form is kPanels.
  char* panel(int64_t index) const { return first_ + first_column(index) * bytes_of_column(); }
  int64_t nbytes() const { return grains_ * grain_columns_ * bytes_of_column(); }

  // Multiplies rows by some panels in the calling thread, `kc` terms of the sums at a time.
  // `buffer` is the thread's and grows as needed.
  void multiply_panels(const Range& panels, const void* const* a, int64_t rows, int64_t kc,
                       const Destination& to, Scratch& buffer) const;
  // Calls body(group) for each group of panels that one call of the kernel multiplies. Begins with
  // the last group if `backwards`.
  void for_panel_groups(Range panels, const auto& body, bool backwards = false) const {
    while (panels.begin < panels.end) {
      const Range group = next_group(panels, backwards);
      body(group);
      (backwards ? panels.end : panels.begin) = backwards ? group.begin : group.end;
    }
  }

 private:
  // The arguments of multiply_panels. `to` begins at column `origin` of the matrix.
  struct GemmArguments {
    const void* const* a;
    int64_t rows, kc, origin;
    const Destination& to;
    Scratch& buffer;
  };

  void cut_into_panels(int64_t groups);
  int64_t first_column(int64_t panel) const {
    const int64_t grain = grains_per_panel_ ? std::min(panel * grains_per_panel_, grains_)
                                            : panel * grains_ / panel_count_;
    return grain * grain_columns_;
  }
  int64_t bytes_of_column() const {
    return gemm_->header_bytes + gemm_->bytes(round_up(K_, gemm_->k_multiple));
  }
  Range next_group(const Range& panels, bool backwards) const;
  UnpackedColumns unpacked_columns(int64_t panel) const;
  // Describes up to kc terms of a panel from term k on, which `product` will prefetch.
  Prefetch prefetch_of(int64_t panel, int64_t k, int64_t kc, const PanelProduct& product) const;
  // Returns where the call after panels p .. last reads: term k, or, at the end, the next panel.
  const char* prefetch_after(const Range& panels, int64_t p, int64_t last, int64_t k) const;
  // The arguments of a kernel for terms [k, k + kc) of panels of one width, without `panel`.
  PanelProduct product_of(const GemmArguments& call, const Range& panels, int64_t k) const;
  void multiply_from_panels(const GemmArguments& call, const Range& panels) const;
  void multiply_on_demand(GemmArguments call, const Range& panels) const;
  void multiply_columns_in_place(const GemmArguments& call, const Range& panels) const;
  void multiply_rows_in_place(const GemmArguments& call, const Range& panels) const;

  const GemmKernels* gemm_;
  int64_t K_, N_;
  MatrixForm form_ = MatrixForm::kPanels;
  // A grain is the narrowest possible panel. If grains_per_panel_ is 0, panels get equal shares.
  int64_t grain_columns_, grains_, panel_count_, grains_per_panel_ = 0;
  int64_t panels_at_once_;
  MatrixSource source_;    // if the form is not kPanels
  Scratch panels_;         // owns panels that were packed here
  at::Tensor prepacked_;   // owns prepacked panels
  char* first_ = nullptr;  // the first panel
};

Matrix matrix_of(const GemmKernels& gemm, const at::Tensor& w, bool transposed, int64_t groups,
                 MatrixForm form = MatrixForm::kPanels);

// Returns the transpose of a weight [4H,K], with columns in gate order: one panel of four vectors,
// or neighboring narrower panels, have the four gates of one vector of units. In place the order
// must have all lanes. Nobody reads the sums of padding.
Matrix gate_matrix_of(const GemmKernels& gemm, const at::Tensor& w, const GateOrder& order,
                      MatrixForm form = MatrixForm::kPanels);

// Computes c[r] = a[r] * the columns of some panels. Each c[r] is a row [N] of T.
template <typename T>
void serial_gemm(const void* const* a, int64_t rows, const Matrix& matrix, const Range& panels,
                 void* const* c) {
  Scratch buffer;
  const Destination to{.rows = c, .c_is_16_bit = sizeof(T) == 2};
  matrix.multiply_panels(panels, a, rows, matrix.K(), to, buffer);
}

}  // namespace fastlstm
