#include "cpu/gemm/packed_matrix.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <type_traits>

namespace fastlstm {
namespace {

constexpr int64_t kBlockRows = 96;       // rows that pass a panel piece together
constexpr int64_t kGradientRows = 1024;  // rows of a weight gradient's sum packed at a time
constexpr int64_t kRowsOfAThread = 24;   // a thread with fewer would load the panels for too few

int64_t worth_a_thread() { return kernel_table().tuning.product_worth_a_thread; }

// body(begin, end) for rows in blocks of at most kBlockRows, which threads take as they finish.
// Their number is a multiple of the threads': where there are few, one more takes a third longer.
template <typename T, typename Body>
void for_blocks(int64_t rows, int64_t multiply_adds_of_a_row, const Body& body) {
  const int64_t threads = std::min({int64_t(at::get_num_threads()), divide_up(rows, kRowsOfAThread),
                                    1 + rows * multiply_adds_of_a_row / worth_a_thread()});
  const int64_t blocks =
      threads > 0 ? divide_up(divide_up(rows, kBlockRows), threads) * threads : 0;
  std::atomic<int64_t> next = 0;
  at::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    const ThreadSeries<T> series;
    for (int64_t k; (k = next++) < blocks;) body(k * rows / blocks, (k + 1) * rows / blocks);
  });
}

// body(begin, end, panels): blocks of rows with all panels, or, if rows are few for the threads and
// panels are not, all rows with some panels, so that each panel is loaded once.
template <typename T, typename Body>
void share_product(int64_t rows, const PackedMatrix<T>& matrix, const Body& body) {
  const int64_t panels = matrix.panel_count(), K = matrix.K(), threads = at::get_num_threads();
  const int64_t blocks = std::min(threads, divide_up(rows, kRowsOfAThread));
  if (rows > matrix.product().panel_rows && (rows >= kRowsOfAThread * threads || panels < blocks))
    return for_blocks<T>(rows, K * matrix.N(),
                         [&](int64_t begin, int64_t end) { body(begin, end, Range{0, panels}); });
  const int64_t grain = divide_up(worth_a_thread(), 1 + rows * K * matrix.width(0));
  at::parallel_for(0, panels, grain, [&](int64_t first, int64_t last) {
    const ThreadSeries<T> series;
    body(0, rows, Range{first, last});
  });
}

std::vector<PanelShape> cut_into_panels(int64_t N, int64_t lanes, int64_t widest, int64_t pieces) {
  const int64_t vectors = divide_up(N, lanes);
  const int64_t count = std::min(vectors, divide_up(divide_up(vectors, widest), pieces) * pieces);
  std::vector<PanelShape> panels;
  for (int64_t p = 0; p < count; ++p) {
    const auto [begin, end] = part_of(vectors, p, count);
    panels.push_back({begin * lanes, std::min(end * lanes, N) - begin * lanes, end - begin});
  }
  return panels;
}

// body(k, terms, panel, shape, prefetch) for each panel, `piece` of the matrix's rows at a time.
// The next piece comes into the cache meanwhile.
template <typename T>
void for_pieces(const MatrixInPlace<T>& matrix, int64_t rows, int64_t piece, const auto& body) {
  const Product<T>& product = product_of<T>();
  const int64_t K = matrix.K(), width = product.vectors * product.lanes;
  const auto panels =
      cut_into_panels(matrix.N(), product.lanes, product.vectors, at::get_num_threads());
  piece = round_up(std::min(piece, K), product.padding);
  const int64_t pieces = divide_up(K, piece);
  const auto begin_of = [&](int64_t i) { return i % pieces * piece; };
  const auto terms_of = [&](int64_t i) { return std::min(piece, K - begin_of(i)); };
  const int64_t grain = divide_up(worth_a_thread(), std::max<int64_t>(rows * K * width, 1));
  at::parallel_for(0, panels.size(), grain, [&](int64_t first, int64_t last) {
    const at::Tensor packed = scratch<T>(piece * width);
    T* const panel = data<T>(packed);
    const ThreadSeries<T> series;
    for (int64_t i = first * pieces; i < last * pieces; ++i) {
      const int64_t k = begin_of(i), terms = terms_of(i), next = std::min(i + 1, last * pieces - 1);
      const PanelShape &shape = panels[i / pieces], &after = panels[next / pieces];
      product.pack({matrix.rows.data(), false}, k, terms, shape, panel);
      Prefetch prefetch =
          prefetch_during(product, rows, terms, matrix.rows.data() + begin_of(next), terms_of(next),
                          after.first_column, after.first_column + after.columns);
      body(k, terms, panel, shape, prefetch);
    }
  });
}

}  // namespace

template <typename T>
PackedMatrix<T>::PackedMatrix(int64_t K, int64_t N, int64_t pieces)
    : K_(K), panels_(cut_into_panels(N, product_.lanes, product_.vectors, pieces)), offsets_{0} {
  const int64_t of_column = product_.header + round_up(K, product_.padding);
  for (size_t p = 0; p < panels_.size(); ++p)
    offsets_.push_back(offsets_.back() + width(p) * of_column);
}

template <typename T>
PackedMatrix<T>::PackedMatrix(int64_t K, int64_t N, int64_t pieces, const at::Tensor& data,
                              int64_t offset)
    : PackedMatrix(K, N, pieces) {
  const int64_t bytes = offset + size() * int64_t(sizeof(T));
  TORCH_CHECK(data.is_contiguous() && int64_t(data.nbytes()) == bytes, "lstm_packed: expected ",
              bytes, " bytes of a packed matrix [", N, ", ", K, "], got ", data.sizes());
  data_ = data;
  first_ =
      reinterpret_cast<T*>(static_cast<char*>(const_cast<void*>(data.const_data_ptr())) + offset);
}

template <typename T>
PackedMatrix<T>::PackedMatrix(const Matrix<T>& matrix, int64_t pieces)
    : PackedMatrix(matrix.K, matrix.N, pieces) {
  data_ = scratch<T>(size());
  first_ = data<T>(data_);
  // Threads share the work by squares of kPackRows, since panels may be few.
  constexpr int64_t kPackRows = 128;
  const int64_t blocks = divide_up(K_, kPackRows), panels = panels_.size();
  at::parallel_for(0, blocks * panels, (1 << 15) / (64 * kPackRows), [&](int64_t i, int64_t last) {
    for (; i < last; ++i) {
      const int64_t p = i / blocks, k = i % blocks * kPackRows;
      product_.pack(matrix.rows, matrix.k_begin + k, std::min(kPackRows, K_ - k), panels_[p],
                    panel(p) + (product_.header + k) * width(p));
    }
  });
}

template <typename T>
Range PackedMatrix<T>::columns(const Range& panels) const {
  const auto column = [&](size_t p) { return p < panels_.size() ? panels_[p].first_column : N(); };
  return {column(panels.begin), column(panels.end)};
}

template <typename T>
typename PackedMatrix<T>::Group PackedMatrix<T>::next_group(const Range& panels, int64_t rows,
                                                            bool backwards) const {
  const int64_t most = std::min(product_.panels_for(rows), panels.end - panels.begin);
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

template <typename T>
PackedMatrix<T> pack(const at::Tensor& w, bool transposed, int64_t pieces) {
  const int64_t rows = w.size(0), columns = w.size(1);
  const auto pointers = row_pointers(const_data<Given_t<T>>(w), rows, columns);
  return {
      {{pointers.data(), transposed}, 0, transposed ? columns : rows, transposed ? rows : columns},
      pieces};
}

template <typename T>
PackedMatrix<T> pack_gates(const at::Tensor& w) {
  const int64_t lanes = product_of<T>().lanes, hidden = w.size(0) / 4, K = w.size(1);
  const int64_t tiles = divide_up(hidden, lanes);
  const std::vector<Given_t<T>> zeros(K, Given_t<T>{});  // where there is no unit
  std::vector<const Given_t<T>*> columns;
  for (int64_t tile = 0; tile < tiles; ++tile)
    for (int64_t gate = 0; gate < 4; ++gate)
      for (int64_t unit = tile * lanes; unit < (tile + 1) * lanes; ++unit)
        columns.push_back(unit < hidden ? const_data<Given_t<T>>(w) + (gate * hidden + unit) * K
                                        : zeros.data());
  return {{{columns.data(), true}, 0, K, tiles * 4 * lanes}, 1};
}

template <typename T>
at::Tensor order_gates(const at::Tensor& b_ih, const at::Tensor& b_hh) {
  using A = State_t<T>;
  if (!b_ih.defined()) return {};
  const int64_t lanes = product_of<T>().lanes, hidden = b_ih.numel() / 4;
  const at::Tensor ordered = scratch<A>(gate_columns(hidden, lanes));
  const at::Tensor for_x = b_ih.contiguous(), for_h = b_hh.contiguous();
  const A *const from_x = const_data<A>(for_x), *const from_h = const_data<A>(for_h);
  A* to = data<A>(ordered);
  for (int64_t unit = 0; unit < hidden; unit += lanes)
    for (int64_t gate = 0; gate < 4; ++gate, to += lanes) {
      const A *const of_x = from_x + gate * hidden + unit, *const of_h = from_h + (of_x - from_x);
      const int64_t units = std::min(lanes, hidden - unit);
      for (int64_t k = 0; k < units; ++k) to[k] = of_x[k] + of_h[k];
      std::fill(to + units, to + lanes, A(0));
    }
  return ordered;
}

// Whether products of T are rounded to C, which needs the whole of K at once.
template <typename T, typename C>
constexpr bool kRounds = !std::is_same_v<C, State_t<T>>;

template <typename T, typename C>
static void multiply(const Product<T>& product, const PanelProduct<T, C>& panels) {
  if constexpr (kRounds<T, C>)
    product.multiply_rounded(panels);
  else
    product.multiply(panels);
}

template <typename T, typename C>
void multiply(const std::vector<const T*>& a, const PackedMatrix<T>& matrix,
              const std::vector<C*>& c, bool accumulate, const State_t<T>* bias) {
  const Product<T>& product = matrix.product();
  const int64_t rows = a.size(), K = matrix.K(), piece = kRounds<T, C> ? K : product.piece;
  if (rows == 0) return;  // libraries refuse empty products
  share_product(rows, matrix, [&](int64_t begin, int64_t end, const Range& panels) {
    for (int64_t k = 0; k < K; k += piece)
      matrix.for_groups(panels, end - begin, [&](const auto& group) {
        multiply<T, C>(product, {a.data() + begin, end - begin, k, std::min(piece, K - k),
                                 matrix.panel(group.first) + k * matrix.width(group.first),
                                 group.shape, c.data() + begin, accumulate || k > 0,
                                 k > 0 ? nullptr : bias, group.count, group.stride});
      });
  });
}

template <typename T, typename C>
void multiply(const std::vector<const T*>& a, const MatrixInPlace<T>& matrix,
              const std::vector<C*>& c, bool accumulate) {
  const Product<T>& product = product_of<T>();
  const int64_t rows = a.size();
  if (rows == 0) return;
  for_pieces(
      matrix, rows, kRounds<T, C> ? matrix.K() : product.piece,
      [&](int64_t k, int64_t terms, const T* panel, const PanelShape& shape, Prefetch& next) {
        const PanelProduct<T, C> one{a.data(), rows,  k,        terms,
                                     panel,    shape, c.data(), accumulate || k > 0};
        if constexpr (kRounds<T, C>)
          product.multiply_rounded(one);
        else
          product.multiply_and_fetch(one, &next);
      });
}

template <typename T, typename C>
void multiply_panels(const std::vector<const T*>& a, int64_t rows, const PackedMatrix<T>& matrix,
                     const Range& panels, const std::vector<C*>& c) {
  if (rows == 0) return;
  matrix.for_groups(panels, rows, [&](const auto& group) {
    multiply<T, C>(matrix.product(),
                   {a.data(), rows, 0, matrix.K(), matrix.panel(group.first), group.shape, c.data(),
                    false, nullptr, group.count, group.stride});
  });
}

template <typename T>
void multiply_narrowed(const std::vector<const State_t<T>*>& a, const AnyMatrix<State_t<T>>& matrix,
                       const std::vector<T*>& c, bool accumulate) {
  using A = State_t<T>;
  const int64_t rows = a.size(), N = std::visit([](const auto& w) { return w.N(); }, matrix);
  const at::Tensor buffer = scratch<A>(rows * N);
  const std::vector<A*> sums = row_pointers(data<A>(buffer), rows, N);
  multiply_into<A, A>(a, matrix, sums, false);
  at::parallel_for(0, rows, 1 + (1 << 15) / N, [&](int64_t r, int64_t last) {
    for (; r < last; ++r)
      for (int64_t n = 0; n < N; ++n)
        c[r][n] = T(accumulate ? A(c[r][n]) + sums[r][n] : sums[r][n]);
  });
}

template <typename T>
void multiply_transposed(std::vector<const T*> a, int64_t M, std::vector<GradientPart<T>> parts,
                         State_t<T>* sums, bool accumulate) {
  const Product<T>& product = product_of<T>();
  int64_t widest = M;
  for (const auto& part : parts) widest = std::max(widest, part.N);
  const std::vector<T> zeros(widest, T(State_t<T>(0)));
  const auto pad = [&](std::vector<const T*>& rows) {
    rows.resize(round_up(rows.size(), product.terms), zeros.data());
  };
  pad(a);
  for (auto& part : parts) pad(part.b);
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
      packed.emplace_back(Matrix<T>{{part.b.data(), false}, r, part_K, part.N}, 1);
      terms += part_K * part.N;
    }
    for_blocks<T>(M, terms, [&](int64_t begin, int64_t end) {
      const at::Tensor transposed = scratch<T>((end - begin) * K);
      T* const first = data<T>(transposed);
      product.transpose(a.data() + r, K, begin, end, first);
      const std::vector<const T*> a_rows =
          row_pointers(static_cast<const T*>(first), end - begin, K);
      if (sums) product.sum_rows(a_rows.data(), end - begin, K, sums + begin, accumulate);
      for (size_t i = 0; i < parts.size(); ++i)
        for (size_t p = 0; p < packed[i].panels().size(); ++p)
          product.multiply({a_rows.data(), end - begin, 0, packed[i].K(), packed[i].panel(p),
                            packed[i].panels()[p], c[i].data() + begin, accumulate});
    });
  }
}

template <typename T>
const State_t<T>* PanelSums<T>::multiply(const PackedMatrix<T>& matrix, const Range& panels,
                                         const T* const* a, int64_t rows, int64_t piece,
                                         const T* zeros, const A* bias, NextPanels* next) {
  if (std::all_of(a, a + rows, [zeros](const T* row) { return row == zeros; })) {
    std::fill_n(rows_[0], rows * stride_, A(0));
    return rows_[0];
  }
  const Product<T>& product = matrix.product();
  int64_t column = 0;
  matrix.for_groups(panels, rows, [&](const auto& group) {
    const int64_t width = group.count * matrix.width(group.first);
    // Whole vectors, so that the buffer never holds anything but sums.
    const PanelShape shape{column, width, group.shape.vectors};
    for (int64_t k = 0; k < matrix.K(); k += piece)
      product.multiply({a, rows, k, std::min(piece, matrix.K() - k),
                        matrix.panel(group.first) + k * matrix.width(group.first), shape,
                        rows_.data(), k > 0, k > 0 ? nullptr : bias, group.count, group.stride,
                        next});
    column += width;
  });
  return rows_[0];
}

// Of every product.
#define FASTLSTM_INSTANTIATE_PRODUCT(T, name, unpacked, bits, group)                           \
  template class PackedMatrix<T>;                                                              \
  template class PanelSums<T>;                                                                 \
  template PackedMatrix<T> pack<T>(const at::Tensor&, bool, int64_t);                          \
  template PackedMatrix<T> pack_gates<T>(const at::Tensor&);                                   \
  template at::Tensor order_gates<T>(const at::Tensor&, const at::Tensor&);                    \
  template void multiply(const std::vector<const T*>&, const PackedMatrix<T>&,                 \
                         const std::vector<State_t<T>*>&, bool, const State_t<T>*);            \
  template void multiply_panels(const std::vector<const T*>&, int64_t, const PackedMatrix<T>&, \
                                const Range&, const std::vector<State_t<T>*>&);
FASTLSTM_FOR_EACH_FORMAT(FASTLSTM_INSTANTIATE_PRODUCT)
FASTLSTM_INSTANTIATE_PRODUCT(bfloat16x3, , , , )

// Rounded.
template void multiply(const std::vector<const bfloat16*>&, const PackedMatrix<bfloat16>&,
                       const std::vector<bfloat16*>&, bool, const float*);
template void multiply_panels(const std::vector<const bfloat16*>&, int64_t,
                              const PackedMatrix<bfloat16>&, const Range&,
                              const std::vector<bfloat16*>&);

// Of layers of 16 bits that are multiplied in float32.
template void multiply_narrowed(const std::vector<const float*>&, const AnyMatrix<float>&,
                                const std::vector<bfloat16*>&, bool);
template void multiply_narrowed(const std::vector<const float*>&, const AnyMatrix<float>&,
                                const std::vector<float16*>&, bool);

// Of those that layers are trained with.
#define FASTLSTM_INSTANTIATE_TRAINED(T, A)                                                        \
  template void multiply(const std::vector<const T*>&, const MatrixInPlace<T>&,                   \
                         const std::vector<A*>&, bool);                                           \
  template void multiply_transposed(std::vector<const T*>, int64_t, std::vector<GradientPart<T>>, \
                                    A*, bool);
FASTLSTM_INSTANTIATE_TRAINED(float, float)
FASTLSTM_INSTANTIATE_TRAINED(double, double)
FASTLSTM_INSTANTIATE_TRAINED(bfloat16, float)
template void multiply(const std::vector<const bfloat16*>&, const MatrixInPlace<bfloat16>&,
                       const std::vector<bfloat16*>&, bool);

}  // namespace fastlstm
