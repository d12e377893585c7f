// A matrix packed into panels for the register tiles, and the product with it, over all threads.
#pragma once
#include <ATen/ATen.h>

#include <utility>
#include <vector>

#include "kernels.h"
#include "scratch.h"

namespace fastlstm {

// The dtype of the cell state and of sums.
template <typename T>
struct StateOf {
  using type = T;
};
template <>
struct StateOf<bfloat16> {
  using type = float;
};
template <typename T>
using State_t = typename StateOf<T>::type;

template <typename T>
const TiledKernels<T, State_t<T>>& tiled_kernels();

// Terms of a sum over k for which a panel stays in the L2 cache.
constexpr int64_t kPiece = 512;

// Cuts columns [0, N) into panels: at most 4 vectors wide, and as many for each of `pieces` threads
// if there are so many vectors.
std::vector<PanelShape> cut_into_panels(int64_t N, int64_t lanes, int64_t pieces);

// Pointers to rows that lie `stride` elements apart.
template <typename T>
std::vector<T*> row_pointers(T* first, int64_t rows, int64_t stride) {
  std::vector<T*> pointers(rows);
  for (int64_t r = 0; r < rows; ++r) pointers[r] = first + r * stride;
  return pointers;
}

template <typename T>
class PackedMatrix {
 public:
  // Rows [k_begin, k_begin + K) of a matrix with N columns. matrix[k] points to row k; where
  // transposed, matrix[n] points to column n.
  PackedMatrix(const T* const* matrix, bool transposed, int64_t k_begin, int64_t K, int64_t N,
               int64_t pieces);

  const std::vector<PanelShape>& panels() const { return panels_; }
  const T* panel(int64_t index) const {
    return static_cast<const T*>(data_.const_data_ptr()) + offsets_[index];
  }
  int64_t K() const { return K_; }
  int64_t N() const { return panels_.back().first_column + panels_.back().columns; }
  // The panels [first, second) of one of `groups` groups of threads, and their columns.
  std::pair<int64_t, int64_t> share(int64_t group, int64_t groups) const {
    const int64_t panels = panels_.size();
    return {group * panels / groups, (group + 1) * panels / groups};
  }
  std::pair<int64_t, int64_t> shared_columns(int64_t group, int64_t groups) const {
    const auto column = [&](size_t p) {
      return p < panels_.size() ? panels_[p].first_column : N();
    };
    const auto [first, last] = share(group, groups);
    return {column(first), column(last)};
  }

 private:
  int64_t K_;
  std::vector<PanelShape> panels_;
  std::vector<int64_t> offsets_;
  at::Tensor data_;
};

// W_hh [4H,K] packed for the forward tiles: per vector of units a panel [K][4 gates][lanes].
template <typename T>
class PackedGates {
 public:
  PackedGates(const T* w_hh, int64_t hidden_size, int64_t K);
  const T* tile(int64_t index) const {
    return static_cast<const T*>(data_.const_data_ptr()) + index * stride_;
  }

 private:
  int64_t stride_;
  at::Tensor data_;
};

// c[r] (+)= a[r] * matrix, r < rows; bias [N] or nullptr (not with accumulate).
template <typename T>
void multiply(const std::vector<const T*>& a, const PackedMatrix<T>& matrix,
              const std::vector<State_t<T>*>& c, bool accumulate, const State_t<T>* bias);

// The columns of c[r] = a[r] * matrix, r < rows, that fall to one of `groups` groups of threads.
template <typename T>
void multiply_share(const T* const* a, int64_t rows, const PackedMatrix<T>& matrix, int64_t group,
                    int64_t groups, State_t<T>* const* c);

// The same as `multiply` into rows of T, rounded once at the end.
template <typename T>
void multiply_rounded(const std::vector<const T*>& a, const PackedMatrix<T>& matrix,
                      const std::vector<T*>& c, bool accumulate);

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
void multiply_transposed(const std::vector<const T*>& a, int64_t M,
                         const std::vector<GradientPart<T>>& parts, State_t<T>* sums,
                         bool accumulate);

}  // namespace fastlstm
