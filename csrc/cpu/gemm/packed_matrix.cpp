#include "cpu/gemm/packed_matrix.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <cstring>

#include "cpu/targets/kernels.h"

namespace fastlstm {
namespace {

constexpr int64_t kBlockRows = 96;       // rows that pass a panel piece together
constexpr int64_t kGradientRows = 1024;  // rows of a weight gradient's sum packed at a time

// body(begin, end) for rows in blocks of at most kBlockRows, which threads take as they finish.
// Their number is a multiple of the threads': where there are few, one more takes a third longer.
void for_blocks(const Product& product, int64_t rows, int64_t multiply_adds_of_a_row,
                const auto& body) {
  const int64_t threads = std::min({int64_t(at::get_num_threads()), divide_up(rows, kRowsOfAThread),
                                    1 + rows * multiply_adds_of_a_row / kProductWorthAThread});
  const int64_t blocks =
      threads > 0 ? divide_up(divide_up(rows, kBlockRows), threads) * threads : 0;
  std::atomic<int64_t> next = 0;
  at::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    const ThreadSeries series(product);
    for (int64_t k; (k = next++) < blocks;) body(k * rows / blocks, (k + 1) * rows / blocks);
  });
}

// body(begin, end, panels): blocks of rows with all panels, or, if rows are few for the threads and
// panels are not, all rows with some panels, so that each panel is loaded once.
void share_product(int64_t rows, const PackedMatrix& matrix, const auto& body) {
  const int64_t panels = matrix.panel_count(), K = matrix.K(), threads = at::get_num_threads();
  const int64_t blocks = std::min(threads, divide_up(rows, kRowsOfAThread));
  if (rows > matrix.product().panel_rows && (rows >= kRowsOfAThread * threads || panels < blocks))
    return for_blocks(matrix.product(), rows, K * matrix.N(),
                      [&](int64_t begin, int64_t end) { body(begin, end, Range{0, panels}); });
  const int64_t grain = divide_up(kProductWorthAThread, 1 + rows * K * matrix.width(0));
  at::parallel_for(0, panels, grain, [&](int64_t first, int64_t last) {
    const ThreadSeries series(matrix.product());
    body(0, rows, Range{first, last});
  });
}

std::vector<PanelShape> cut_into_panels(const Product& product, int64_t N, int64_t pieces) {
  const int64_t narrowest = product.narrowest * product.lanes, parts = divide_up(N, narrowest);
  const int64_t widest = product.vectors / product.narrowest;
  const int64_t count = std::min(parts, divide_up(divide_up(parts, widest), pieces) * pieces);
  std::vector<PanelShape> panels;
  for (int64_t p = 0; p < count; ++p) {
    const auto [begin, end] = part_of(parts, p, count);
    panels.push_back({begin * narrowest, std::min(end * narrowest, N) - begin * narrowest,
                      (end - begin) * product.narrowest});
  }
  return panels;
}

}  // namespace

Prefetch prefetch_during(const Product& product, int64_t rows, int64_t terms,
                         const void* const* next, int64_t count, int64_t begin, int64_t end) {
  const int64_t first = product.bytes(begin), last = product.bytes(end);
  const int64_t lines = count * divide_up(last - first, 64);
  const int64_t times = std::max<int64_t>(rows / product.rows * (terms / kTermsPerFetch), 1);
  return {next, count, first, last, divide_up(lines, times)};
}

PackedMatrix::PackedMatrix(const Product& product, int64_t K, int64_t N, int64_t pieces)
    : product_(&product), K_(K), panels_(cut_into_panels(product, N, pieces)), offsets_{0} {
  const int64_t of_column = product.header + product.bytes(round_up(K, product.padding));
  for (size_t p = 0; p < panels_.size(); ++p)
    offsets_.push_back(offsets_.back() + width(p) * of_column);
}

// Of a matrix, contiguous.
static std::vector<const void*> rows_of(const at::Tensor& w) {
  return row_pointers(const_data<char>(w), w.size(0), w.size(1) * w.element_size());
}

PackedMatrix::PackedMatrix(const Product& product, const at::Tensor& w)
    : PackedMatrix(product, w.size(0), w.size(1), at::get_num_threads()) {
  data_ = w;
  rows_ = rows_of(w);
}

PackedMatrix::PackedMatrix(const Product& product, int64_t K, int64_t N, int64_t pieces,
                           const at::Tensor& data, int64_t offset)
    : PackedMatrix(product, K, N, pieces) {
  const int64_t bytes = offset + nbytes();
  TORCH_CHECK(data.is_contiguous() && int64_t(data.nbytes()) == bytes, "lstm_packed: expected ",
              bytes, " bytes of a packed matrix [", N, ", ", K, "], got ", data.sizes());
  data_ = data;
  first_ = static_cast<char*>(const_cast<void*>(data.const_data_ptr())) + offset;
}

PackedMatrix::PackedMatrix(const Product& product, const Matrix& matrix, int64_t pieces)
    : PackedMatrix(product, matrix.K, matrix.N, pieces) {
  data_ = scratch_bytes(nbytes());
  first_ = data<char>(data_);
  // Threads share the work by squares of kPackRows, since panels may be few.
  constexpr int64_t kPackRows = 128;
  const int64_t blocks = divide_up(K_, kPackRows), panels = panels_.size();
  at::parallel_for(0, blocks * panels, (1 << 15) / (64 * kPackRows), [&](int64_t i, int64_t last) {
    for (; i < last; ++i) {
      const int64_t p = i / blocks, k = i % blocks * kPackRows;
      product.pack(matrix.rows, matrix.k_begin + k, std::min(kPackRows, K_ - k), panels_[p],
                   panel(p) + (product.header + product.bytes(k)) * width(p));
    }
  });
}

Range PackedMatrix::columns(const Range& panels) const {
  const auto column = [&](size_t p) { return p < panels_.size() ? panels_[p].first_column : N(); };
  return {column(panels.begin), column(panels.end)};
}

PackedMatrix::Group PackedMatrix::next_group(const Range& panels, int64_t rows,
                                             bool backwards) const {
  const int64_t most = std::min(product_->panels_for(rows), panels.end - panels.begin);
  const int64_t step = backwards ? -1 : 1;
  int64_t p = backwards ? panels.end - 1 : panels.begin, count = 1;
  PanelShape shape = panels_[p];
  for (; count < most && panels_[p + step].vectors == shape.vectors; ++count) {
    p += step;
    shape.columns += panels_[p].columns;
  }
  const int64_t first = backwards ? p : panels.begin;
  shape.first_column = panels_[first].first_column;
  return {first, count, offsets_[first + 1] - offsets_[first], shape};
}

PackedMatrix pack(const Product& product, const at::Tensor& w, bool transposed, int64_t pieces) {
  const int64_t rows = w.size(0), columns = w.size(1);
  const auto pointers = rows_of(w);
  return {
      product,
      {{pointers.data(), transposed}, 0, transposed ? columns : rows, transposed ? rows : columns},
      pieces};
}

PackedMatrix pack_gates(const Product& product, const at::Tensor& w) {
  const int64_t lanes = product.lanes, hidden = w.size(0) / 4, K = w.size(1);
  const int64_t tiles = divide_up(hidden, lanes);
  const auto rows = rows_of(w);
  const std::vector<char> zeros(K * w.element_size());  // where there is no unit
  std::vector<const void*> columns;
  for (int64_t tile = 0; tile < tiles; ++tile)
    for (int64_t gate = 0; gate < 4; ++gate)
      for (int64_t unit = tile * lanes; unit < (tile + 1) * lanes; ++unit)
        columns.push_back(unit < hidden ? rows[gate * hidden + unit] : zeros.data());
  return {product, {{columns.data(), true}, 0, K, tiles * 4 * lanes}, 1};
}

// The same, a panel at a time, of which some rows are packed while the next come into the cache.
static void multiply_unpacked(const std::vector<const void*>& a, const PackedMatrix& matrix,
                              const std::vector<void*>& c, bool accumulate, bool rounds) {
  const Product& product = matrix.product();
  const int64_t rows = a.size(), K = matrix.K(), width = product.width();
  const auto& panels = matrix.panels();
  const int64_t piece = round_up(rounds ? K : std::min(product.piece, K), product.padding);
  const int64_t pieces = divide_up(K, piece);
  const auto begin_of = [&](int64_t i) { return i % pieces * piece; };
  const auto terms_of = [&](int64_t i) { return std::min(piece, K - begin_of(i)); };
  const int64_t grain = divide_up(kProductWorthAThread, std::max<int64_t>(rows * K * width, 1));
  at::parallel_for(0, panels.size(), grain, [&](int64_t first, int64_t last) {
    const at::Tensor packed = scratch_bytes(width * product.bytes(piece));
    void* const panel = data<char>(packed);
    const ThreadSeries series(product);
    for (int64_t i = first * pieces; i < last * pieces; ++i) {
      const int64_t k = begin_of(i), terms = terms_of(i), next = std::min(i + 1, last * pieces - 1);
      const PanelShape &shape = panels[i / pieces], &after = panels[next / pieces];
      product.pack({matrix.unpacked_rows(), false}, k, terms, shape, panel);
      Prefetch prefetch =
          prefetch_during(product, rows, terms, matrix.unpacked_rows() + begin_of(next),
                          terms_of(next), after.first_column, after.first_column + after.columns);
      PanelProduct some{a.data(), rows, k, terms, panel, shape, c.data(), accumulate || k > 0};
      some.prefetch = &prefetch, some.rounds = rounds;
      product.multiply(some);
    }
  });
}

void multiply(const std::vector<const void*>& a, const PackedMatrix& matrix,
              const std::vector<void*>& c, bool accumulate, const void* bias, bool rounds) {
  const Product& product = matrix.product();
  const int64_t rows = a.size(), K = matrix.K(), piece = rounds ? K : product.piece;
  if (rows == 0) return;  // libraries refuse empty products
  if (matrix.unpacked_rows()) return multiply_unpacked(a, matrix, c, accumulate, rounds);
  share_product(rows, matrix, [&](int64_t begin, int64_t end, const Range& panels) {
    for (int64_t k = 0; k < K; k += piece)
      matrix.for_groups(panels, end - begin, [&](const auto& group) {
        PanelProduct some =
            matrix.product_of(a.data() + begin, end - begin, k, std::min(piece, K - k), group);
        some.c = c.data() + begin, some.accumulate |= accumulate, some.rounds = rounds;
        if (k == 0) some.bias = bias;
        product.multiply(some);
      });
  });
}
template <typename T>
void multiply_into(const std::vector<const void*>& a, const PackedMatrix& matrix,
                   const std::vector<void*>& c, bool accumulate) {
  constexpr bool kIsNarrow = sizeof(T) == 2;
  if (!kIsNarrow || matrix.product().takes(dtype_of_rows<T>))
    return multiply(a, matrix, c, accumulate, nullptr, /*rounds=*/kIsNarrow);
  const int64_t rows = a.size(), N = matrix.N();
  const at::Tensor buffer = scratch<float>(rows * N);
  multiply(a, matrix, row_pointers(data<float>(buffer), rows, N), false);
  at::parallel_for(0, rows, 1 + (1 << 15) / N, [&](int64_t r, int64_t last) {
    for (; r < last; ++r) {
      const float* const sums = const_data<float>(buffer) + r * N;
      T* const to = static_cast<T*>(c[r]);
      for (int64_t n = 0; n < N; ++n) to[n] = T(accumulate ? float(to[n]) + sums[n] : sums[n]);
    }
  });
}
#define FASTLSTM_INSTANTIATE(T, A, name)                                               \
  template void multiply_into<T>(const std::vector<const void*>&, const PackedMatrix&, \
                                 const std::vector<void*>&, bool);
FASTLSTM_FOR_EACH_DTYPE(FASTLSTM_INSTANTIATE)

void multiply_panels(const std::vector<const void*>& a, int64_t rows, const PackedMatrix& matrix,
                     const Range& panels, const std::vector<void*>& c) {
  if (rows == 0) return;
  matrix.for_groups(panels, rows, [&](const auto& group) {
    PanelProduct some = matrix.product_of(a.data(), rows, 0, matrix.K(), group);
    some.c = c.data();
    matrix.product().multiply(some);
  });
}

void multiply_transposed(const Product& product, const std::vector<const void*>& a, int64_t M,
                         const std::vector<GradientPart>& parts, void* sums, bool accumulate) {
  const int64_t bytes_of_sum = bytes_of(product.sums);
  const int64_t rows = a.size();
  if (rows == 0 && !accumulate) {
    for (const auto& part : parts) std::memset(part.c, 0, M * part.N * bytes_of_sum);
    if (sums) std::memset(sums, 0, M * bytes_of_sum);
  }
  std::vector<std::vector<void*>> c;
  for (const auto& part : parts)
    c.push_back(row_pointers(static_cast<char*>(part.c), M, part.N * bytes_of_sum));
  for (int64_t r = 0; r < rows; r += kGradientRows, accumulate = true) {
    const int64_t K = std::min(kGradientRows, rows - r);
    std::vector<PackedMatrix> packed;
    int64_t terms = 0;
    for (const auto& part : parts) {
      const int64_t part_K = std::clamp<int64_t>(int64_t(part.b.size()) - r, 0, K);
      packed.emplace_back(product, Matrix{{part.b.data(), false}, r, part_K, part.N}, 1);
      terms += part_K * part.N;
    }
    for_blocks(product, M, terms, [&](int64_t begin, int64_t end) {
      const int64_t bytes_of_row = product.bytes_of_row(K);
      const at::Tensor transposed = scratch_bytes((end - begin) * bytes_of_row);
      product.transpose(a.data() + r, K, begin, end, data<char>(transposed));
      const auto a_rows = row_pointers(const_data<char>(transposed), end - begin, bytes_of_row);
      if (sums)
        product.sum_rows(a_rows.data(), end - begin, K,
                         static_cast<char*>(sums) + begin * bytes_of_sum, accumulate);
      for (size_t i = 0; i < parts.size(); ++i)
        for (int64_t p = 0; p < packed[i].panel_count(); ++p)
          product.multiply({a_rows.data(), end - begin, 0, packed[i].K(), packed[i].panel(p),
                            packed[i].panels()[p], c[i].data() + begin, accumulate});
    });
  }
}

const void* PanelSums::multiply(const PackedMatrix& matrix, const Range& panels,
                                const void* const* a, int64_t rows, int64_t piece,
                                const void* zeros, const void* bias, NextPanels* next) {
  if (std::all_of(a, a + rows, [zeros](const void* row) { return row == zeros; })) {
    std::memset(rows_[0], 0, rows * bytes_of_row_);
    return rows_[0];
  }
  const Product& product = matrix.product();
  int64_t column = 0;
  matrix.for_groups(panels, rows, [&](const auto& group) {
    const int64_t width = group.count * matrix.width(group.first);
    for (int64_t k = 0; k < matrix.K(); k += piece) {
      PanelProduct some = matrix.product_of(a, rows, k, std::min(piece, matrix.K() - k), group);
      // Whole vectors, so that the buffer never holds anything but sums.
      some.shape.first_column = column, some.shape.columns = width;
      some.c = rows_.data(), some.next = next;
      if (k == 0) some.bias = bias;
      product.multiply(some);
    }
    column += width;
  });
  return rows_[0];
}

}  // namespace fastlstm
