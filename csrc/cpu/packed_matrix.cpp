#include "packed_matrix.h"

#include <ATen/Parallel.h>

#include <algorithm>

namespace fastlstm {
namespace {

constexpr int64_t kPiece = 512;          // of the sum over k: a panel piece stays in the L2 cache
constexpr int64_t kBlockRows = 96;       // rows that pass a panel piece together
constexpr int64_t kGradientRows = 1024;  // rows of a weight gradient's sum packed at a time

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Blocks of about kBlockRows, the same number for every thread.
int64_t block_count(int64_t rows) {
  const int64_t threads = at::get_num_threads();
  return std::min(divide_up(divide_up(rows, kBlockRows), threads) * threads, rows);
}

template <typename Body>
void for_blocks(int64_t rows, int64_t blocks, const Body& body) {
  at::parallel_for(0, blocks, 1, [&](int64_t first, int64_t last) {
    for (int64_t k = first; k < last; ++k) {
      const int64_t begin = k * rows / blocks, end = (k + 1) * rows / blocks;
      if (begin < end) body(begin, end);
    }
  });
}

template <typename T>
at::Tensor scratch(int64_t count) {
  return at::empty({count}, at::TensorOptions().dtype(c10::CppTypeToScalarType<T>::value));
}

}  // namespace

template <>
const TiledKernels<float, float>& tiled_kernels() {
  return kernels().tiled_f32;
}
template <>
const TiledKernels<double, double>& tiled_kernels() {
  return kernels().tiled_f64;
}

std::vector<PanelShape> cut_into_panels(int64_t N, int64_t lanes, int64_t pieces) {
  const int64_t vectors = divide_up(N, lanes);
  const int64_t count = std::min(vectors, std::max(pieces, divide_up(vectors, 4)));
  std::vector<PanelShape> panels;
  for (int64_t p = 0; p < count; ++p) {
    const int64_t begin = p * vectors / count, end = (p + 1) * vectors / count;
    panels.push_back({begin * lanes, std::min(end * lanes, N) - begin * lanes, end - begin});
  }
  return panels;
}

template <typename T>
PackedMatrix<T>::PackedMatrix(const T* const* matrix, bool transposed, int64_t k_begin, int64_t K,
                              int64_t N, int64_t pieces)
    : K_(K) {
  const auto& kernels = tiled_kernels<T>();
  panels_ = cut_into_panels(N, kernels.lanes, pieces);
  int64_t total = 0;
  for (const PanelShape& panel : panels_) {
    offsets_.push_back(total);
    total += panel.vectors * kernels.lanes * K;
  }
  data_ = scratch<T>(total);
  T* const data = data_.template mutable_data_ptr<T>();
  const int64_t grain = std::max<int64_t>(1, (1 << 15) / std::max<int64_t>(1, 64 * K));
  at::parallel_for(0, panels_.size(), grain, [&](int64_t first, int64_t last) {
    for (int64_t p = first; p < last; ++p)
      kernels.pack(matrix, transposed, k_begin, K, panels_[p], data + offsets_[p]);
  });
}

template <typename T>
PackedGates<T>::PackedGates(const T* w_hh, int64_t hidden_size, int64_t K) {
  const auto& kernels = tiled_kernels<T>();
  const int64_t lanes = kernels.lanes, tiles = divide_up(hidden_size, lanes), width = 4 * lanes;
  stride_ = K * width;
  data_ = scratch<T>(tiles * stride_);
  T* const data = data_.template mutable_data_ptr<T>();
  const std::vector<T> zeros(K, T(0));
  at::parallel_for(0, tiles, divide_up(1 << 15, stride_), [&](int64_t first, int64_t last) {
    std::vector<const T*> columns(width);
    for (int64_t tile = first; tile < last; ++tile) {
      for (int64_t gate = 0; gate < 4; ++gate)
        for (int64_t lane = 0; lane < lanes; ++lane) {
          const int64_t unit = tile * lanes + lane;
          columns[gate * lanes + lane] =
              unit < hidden_size ? w_hh + (gate * hidden_size + unit) * K : zeros.data();
        }
      kernels.pack(columns.data(), true, 0, K, {0, width, 4}, data + tile * stride_);
    }
  });
}

template <typename T>
void multiply(const std::vector<const T*>& a, const PackedMatrix<T>& matrix,
              const std::vector<T*>& c, bool accumulate, const T* bias) {
  const auto& kernels = tiled_kernels<T>();
  const int64_t rows = a.size(), K = matrix.K();
  for_blocks(rows, block_count(rows), [&](int64_t begin, int64_t end) {
    for (int64_t k = 0; k < K; k += kPiece)
      for (size_t p = 0; p < matrix.panels().size(); ++p) {
        const PanelShape& shape = matrix.panels()[p];
        kernels.multiply(a.data() + begin, end - begin, k, std::min(kPiece, K - k),
                         matrix.panel(p) + k * shape.vectors * kernels.lanes, shape,
                         c.data() + begin, accumulate || k > 0, k > 0 ? nullptr : bias);
      }
  });
}

template <typename T>
void multiply_transposed(const std::vector<const T*>& a, int64_t M,
                         const std::vector<GradientPart<T>>& parts, bool accumulate) {
  const auto& kernels = tiled_kernels<T>();
  const int64_t rows = a.size();
  if (rows == 0) {
    if (!accumulate)
      for (const auto& part : parts) std::fill_n(part.c, M * part.N, T(0));
    return;
  }
  std::vector<std::vector<T*>> c;
  for (const auto& part : parts) c.push_back(row_pointers(part.c, M, part.N));
  for (int64_t r = 0; r < rows; r += kGradientRows) {
    const int64_t K = std::min(kGradientRows, rows - r);
    std::vector<PackedMatrix<T>> packed;
    for (const auto& part : parts) packed.emplace_back(part.b.data(), false, r, K, part.N, 1);
    for_blocks(M, block_count(M), [&](int64_t begin, int64_t end) {
      // `a` transposed: [end - begin][K]
      const at::Tensor block = scratch<T>((end - begin) * K);
      T* const transposed = block.template mutable_data_ptr<T>();
      kernels.transpose(a.data() + r, K, begin, end, transposed);
      const T* first = transposed;
      const std::vector<const T*> a_rows = row_pointers(first, end - begin, K);
      for (size_t i = 0; i < parts.size(); ++i)
        for (size_t p = 0; p < packed[i].panels().size(); ++p)
          kernels.multiply(a_rows.data(), end - begin, 0, K, packed[i].panel(p),
                           packed[i].panels()[p], c[i].data() + begin, accumulate || r > 0,
                           nullptr);
    });
  }
}

template <typename T>
void sum_rows(const std::vector<const T*>& a, int64_t M, T* sums, bool accumulate) {
  constexpr int64_t kColumns = 256;
  at::parallel_for(0, divide_up(M, kColumns), 1, [&](int64_t first, int64_t last) {
    const int64_t begin = first * kColumns, end = std::min(M, last * kColumns);
    if (!accumulate) std::fill(sums + begin, sums + end, T(0));
    for (const T* row : a)
      for (int64_t m = begin; m < end; ++m) sums[m] += row[m];
  });
}

#define FASTLSTM_INSTANTIATE(T)                                                 \
  template class PackedGates<T>;                                                \
  template class PackedMatrix<T>;                                               \
  template void multiply(const std::vector<const T*>&, const PackedMatrix<T>&,  \
                         const std::vector<T*>&, bool, const T*);               \
  template void multiply_transposed(const std::vector<const T*>&, int64_t,      \
                                    const std::vector<GradientPart<T>>&, bool); \
  template void sum_rows(const std::vector<const T*>&, int64_t, T*, bool);
FASTLSTM_INSTANTIATE(float)
FASTLSTM_INSTANTIATE(double)

}  // namespace fastlstm
