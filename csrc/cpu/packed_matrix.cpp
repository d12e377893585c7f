#include "packed_matrix.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <type_traits>

namespace fastlstm {
namespace {

constexpr int64_t kBlockRows = 96;       // rows that pass a panel piece together
constexpr int64_t kGradientRows = 1024;  // rows of a weight gradient's sum packed at a time

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// body(begin, end) for rows in blocks of at most kBlockRows, which threads take as they get done;
// a whole number of blocks for each, for a single block more is a third of the time where few are.
template <typename Body>
void for_blocks(int64_t rows, int64_t multiply_adds_of_a_row, const Body& body) {
  // Below this many multiply-adds, waking another thread costs more than it helps.
  constexpr int64_t kWorthAThread = 1 << 19;
  constexpr int64_t kRowsOfAThread = 24;
  const int64_t threads = std::min({int64_t(at::get_num_threads()), divide_up(rows, kRowsOfAThread),
                                    1 + rows * multiply_adds_of_a_row / kWorthAThread});
  const int64_t blocks =
      threads > 0 ? divide_up(divide_up(rows, kBlockRows), threads) * threads : 0;
  std::atomic<int64_t> next = 0;
  at::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    for (int64_t k; (k = next++) < blocks;) body(k * rows / blocks, (k + 1) * rows / blocks);
  });
}

template <typename T>
T* data(const at::Tensor& scratch) {
  return static_cast<T*>(scratch.mutable_data_ptr());
}

// Panels of 16-bit types hold pairs along k.
int64_t whole_pairs(int64_t K) { return K + K % 2; }

}  // namespace

template <>
const TiledKernels<float, float>& tiled_kernels() {
  return kernels().tiled_f32;
}
template <>
const TiledKernels<double, double>& tiled_kernels() {
  return kernels().tiled_f64;
}
template <>
const TiledKernels<bfloat16, float>& tiled_kernels() {
  return *bfloat16_kernels();
}

std::vector<PanelShape> cut_into_panels(int64_t N, int64_t lanes, int64_t pieces) {
  const int64_t vectors = divide_up(N, lanes);
  const int64_t count = std::min(vectors, divide_up(divide_up(vectors, 4), pieces) * pieces);
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
    total += panel.vectors * kernels.lanes * whole_pairs(K);
  }
  data_ = scratch<T>(total);
  T* const to = data<T>(data_);
  // Threads share the work by squares of kPackRows, for panels may be few.
  constexpr int64_t kPackRows = 128;
  const int64_t blocks = divide_up(K, kPackRows), panels = panels_.size();
  at::parallel_for(0, blocks * panels, (1 << 15) / (64 * kPackRows), [&](int64_t i, int64_t last) {
    for (; i < last; ++i) {
      const int64_t p = i / blocks, k = i % blocks * kPackRows;
      kernels.pack(matrix, transposed, k_begin + k, std::min(kPackRows, K - k), panels_[p],
                   to + offsets_[p] + k * panels_[p].vectors * kernels.lanes);
    }
  });
}

template <typename T>
PackedGates<T>::PackedGates(const T* w_hh, int64_t hidden_size, int64_t K) {
  const auto& kernels = tiled_kernels<T>();
  const int64_t lanes = kernels.lanes, tiles = divide_up(hidden_size, lanes), width = 4 * lanes;
  stride_ = whole_pairs(K) * width;
  data_ = scratch<T>(tiles * stride_);
  T* const to = data<T>(data_);
  const std::vector<T> zeros(K, T(State_t<T>(0)));
  at::parallel_for(0, tiles, divide_up(1 << 15, stride_), [&](int64_t first, int64_t last) {
    std::vector<const T*> columns(width);
    for (int64_t tile = first; tile < last; ++tile) {
      for (int64_t gate = 0; gate < 4; ++gate)
        for (int64_t lane = 0; lane < lanes; ++lane) {
          const int64_t unit = tile * lanes + lane;
          columns[gate * lanes + lane] =
              unit < hidden_size ? w_hh + (gate * hidden_size + unit) * K : zeros.data();
        }
      kernels.pack(columns.data(), true, 0, K, {0, width, 4}, to + tile * stride_);
    }
  });
}

template <typename T>
void multiply(const std::vector<const T*>& a, const PackedMatrix<T>& matrix,
              const std::vector<State_t<T>*>& c, bool accumulate, const State_t<T>* bias) {
  const auto& kernels = tiled_kernels<T>();
  const int64_t rows = a.size(), K = matrix.K();
  for_blocks(rows, K * matrix.N(), [&](int64_t begin, int64_t end) {
    for (int64_t k = 0; k < K; k += kPiece)
      for (size_t p = 0; p < matrix.panels().size(); ++p) {
        const PanelShape& shape = matrix.panels()[p];
        kernels.multiply(a.data() + begin, end - begin, k, std::min(kPiece, K - k),
                         matrix.panel(p) + k * shape.vectors * kernels.lanes, shape,
                         c.data() + begin, accumulate || k > 0, k > 0 ? nullptr : bias, nullptr);
      }
  });
}

template <typename T>
void multiply_share(const T* const* a, int64_t rows, const PackedMatrix<T>& matrix, int64_t group,
                    int64_t groups, State_t<T>* const* c) {
  const auto [first, last] = matrix.share(group, groups);
  for (int64_t p = first; p < last; ++p)
    tiled_kernels<T>().multiply(a, rows, 0, matrix.K(), matrix.panel(p), matrix.panels()[p], c,
                                false, nullptr, nullptr);
}

template <typename T>
void multiply_rounded(const std::vector<const T*>& a, const PackedMatrix<T>& matrix,
                      const std::vector<T*>& c, bool accumulate) {
  if constexpr (std::is_same_v<T, State_t<T>>)
    return multiply<T>(a, matrix, c, accumulate, nullptr);
  const auto& kernels = tiled_kernels<T>();
  const int64_t rows = a.size();
  for_blocks(rows, matrix.K() * matrix.N(), [&](int64_t begin, int64_t end) {
    for (size_t p = 0; p < matrix.panels().size(); ++p)
      kernels.multiply_rounded(a.data() + begin, end - begin, 0, matrix.K(), matrix.panel(p),
                               matrix.panels()[p], c.data() + begin, accumulate, nullptr, nullptr);
  });
}

template <typename T>
void multiply_transposed(const std::vector<const T*>& a, int64_t M,
                         const std::vector<GradientPart<T>>& parts, State_t<T>* sums,
                         bool accumulate) {
  const auto& kernels = tiled_kernels<T>();
  const int64_t rows = a.size();
  if (rows == 0 && !accumulate) {
    for (const auto& part : parts) std::fill_n(part.c, M * part.N, State_t<T>(0));
    if (sums) std::fill_n(sums, M, State_t<T>(0));
  }
  std::vector<std::vector<State_t<T>*>> c;
  for (const auto& part : parts) c.push_back(row_pointers(part.c, M, part.N));
  for (int64_t r = 0; r < rows; r += kGradientRows, accumulate = true) {
    const int64_t K = std::min(kGradientRows, rows - r);
    std::vector<PackedMatrix<T>> packed;
    int64_t terms = 0;
    for (const auto& part : parts) {
      const int64_t part_K = std::clamp<int64_t>(int64_t(part.b.size()) - r, 0, K);
      packed.emplace_back(part.b.data(), false, r, part_K, part.N, 1);
      terms += part_K * part.N;
    }
    for_blocks(M, terms, [&](int64_t begin, int64_t end) {
      const at::Tensor transposed = scratch<T>((end - begin) * K);
      T* const first = data<T>(transposed);
      kernels.transpose(a.data() + r, K, begin, end, first);
      const std::vector<const T*> a_rows =
          row_pointers(static_cast<const T*>(first), end - begin, K);
      if (sums) kernels.sum_rows(a_rows.data(), end - begin, K, sums + begin, accumulate);
      for (size_t i = 0; i < parts.size(); ++i)
        for (size_t p = 0; p < packed[i].panels().size(); ++p)
          kernels.multiply(a_rows.data(), end - begin, 0, packed[i].K(), packed[i].panel(p),
                           packed[i].panels()[p], c[i].data() + begin, accumulate, nullptr,
                           nullptr);
    });
  }
}

#define FASTLSTM_INSTANTIATE(T)                                                                    \
  template class PackedMatrix<T>;                                                                  \
  template class PackedGates<T>;                                                                   \
  template void multiply(const std::vector<const T*>&, const PackedMatrix<T>&,                     \
                         const std::vector<State_t<T>*>&, bool, const State_t<T>*);                \
  template void multiply_share(const T* const*, int64_t, const PackedMatrix<T>&, int64_t, int64_t, \
                               State_t<T>* const*);                                                \
  template void multiply_rounded(const std::vector<const T*>&, const PackedMatrix<T>&,             \
                                 const std::vector<T*>&, bool);                                    \
  template void multiply_transposed(const std::vector<const T*>&, int64_t,                         \
                                    const std::vector<GradientPart<T>>&, State_t<T>*, bool);
FASTLSTM_INSTANTIATE(float)
FASTLSTM_INSTANTIATE(double)
FASTLSTM_INSTANTIATE(bfloat16)

}  // namespace fastlstm
