#include "cpu/gemm/matrix.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <cstring>

#include "cpu/targets/kernels.h"

namespace fastlstm {
namespace {

constexpr int64_t kGradientRows = 1024;  // rows of a weight gradient's sum packed at a time
constexpr int64_t kGates = 4;
constexpr int64_t kBytesOfFewTerms = 128 << 10;  // of panels that all tiles of rows pass
constexpr int64_t kLineBytes = 4096;             // that are read at a time from a row of a matrix
// From so many rows on, waiting for the next panel costs less than fetching it beside them.
constexpr int64_t kMaxRowsToPrefetch = 64;

// body(begin, end, panels) over all threads for a product outside a walk, of `rows` rows that take
// so many multiply-adds each: by blocks of rows, which pass all panels and go to threads as they
// finish, or, if there are panels, by panels, each of which passes all rows.
void divide_among_threads(const GemmKernels& gemm, int64_t rows, int64_t multiply_adds,
                          int64_t panels, MatrixForm form, const auto& body) {
  // With fewer multiply-adds waking another thread costs more than it helps. A thread with fewer
  // rows would load all panels for too few. So many rows pass a piece of a panel together.
  constexpr int64_t kWorthAThread = 1 << 19, kRowsOfAThread = 24, kBlockRows = 96;
  const int64_t most = at::get_num_threads(), work = rows * multiply_adds;
  const int64_t parts = std::min(most, divide_up(rows, kRowsOfAThread));
  const bool few_rows =
      rows <= gemm.min_rows_per_panel_load || (rows < kRowsOfAThread * most && panels >= parts);
  if (form != MatrixForm::kPanels || (panels > 0 && few_rows)) {
    const int64_t grain = divide_up(kWorthAThread, 1 + work / panels);
    at::parallel_for(0, panels, grain, [&](int64_t first, int64_t last) {
      const ThreadSeries series(gemm);
      body(0, rows, Range{first, last});
    });
    return;
  }
  const int64_t threads = std::min(parts, 1 + work / kWorthAThread);
  // A multiple of the threads: where blocks are few, one more takes a third longer.
  const int64_t blocks = threads > 0 ? round_up(divide_up(rows, kBlockRows), threads) : 0;
  std::atomic<int64_t> next = 0;
  at::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    const ThreadSeries series(gemm);
    for (int64_t k; (k = next++) < blocks;)
      body(k * rows / blocks, (k + 1) * rows / blocks, Range{0, panels});
  });
}

}  // namespace

void Matrix::cut_into_panels(int64_t pieces) {
  const bool lies = form_ == MatrixForm::kInPlace;
  const int64_t narrowest = lies ? 1 : gemm_->vectors_multiple;
  part_columns_ = narrowest * gemm_->lanes;
  parts_ = divide_up(N_, part_columns_);
  const int64_t most = !lies                  ? gemm_->max_vectors / narrowest
                       : elements_.transposed ? 1
                                              : kLineBytes / gemm_->bytes(gemm_->lanes);
  if (form_ != MatrixForm::kPanels && !elements_.transposed)
    pieces = std::max<int64_t>(pieces, at::get_num_threads());
  whole_ = pieces == kAllTogether ? most : 0;
  if (whole_) pieces = 1;
  panel_count_ = std::min(parts_, divide_up(divide_up(parts_, most), pieces) * pieces);
}

Matrix::Matrix(const GemmKernels& gemm, int64_t K, int64_t N, int64_t pieces,
               const at::Tensor& data, int64_t offset)
    : gemm_(&gemm), K_(K), N_(N), prepacked_(data) {
  cut_into_panels(pieces);
  const int64_t bytes = offset + nbytes();
  TORCH_CHECK(data.is_contiguous() && int64_t(data.nbytes()) == bytes, "lstm_prepacked: expected ",
              bytes, " bytes of a packed matrix [", N, ", ", K, "], got ", data.sizes());
  first_ = static_cast<char*>(const_cast<void*>(data.const_data_ptr())) + offset;
}

Matrix::Matrix(const GemmKernels& gemm, MatrixSource elements, int64_t pieces, MatrixForm form)
    : gemm_(&gemm), K_(elements.K), N_(elements.N), form_(form) {
  if (form != MatrixForm::kPanels) elements_ = std::move(elements);
  cut_into_panels(pieces);
  if (form != MatrixForm::kPanels) return;
  own_ = Scratch(nbytes());
  first_ = own_.data<char>();
  // Threads share the work by squares of kPackRows, since panels may be few.
  constexpr int64_t kPackRows = 128;
  const int64_t blocks = divide_up(K_, kPackRows), panels = panel_count();
  at::parallel_for(0, blocks * panels, (1 << 15) / (64 * kPackRows), [&](int64_t i, int64_t last) {
    for (; i < last; ++i) {
      const int64_t p = i / blocks, k = i % blocks * kPackRows;
      gemm.pack(elements.rows(), k, std::min(kPackRows, K_ - k), shape(p),
                panel(p) + (gemm.header_bytes + gemm.bytes(k)) * width(p));
    }
  });
}

// Lines spread over the product, so that they come beside its arithmetic.
Prefetch Matrix::fetch(int64_t panel, int64_t k, int64_t terms, const PanelProduct& during) const {
  const PanelShape shape = this->shape(panel);
  const bool by_columns = elements_.transposed;
  const int64_t count = by_columns ? shape.columns : terms;
  const int64_t begin = gemm_->bytes(by_columns ? k : shape.first_column);
  const int64_t end = begin + gemm_->bytes(by_columns ? terms : shape.columns);
  const int64_t lines = count * divide_up(end - begin, 64);
  const int64_t times =
      std::max<int64_t>(during.rows / gemm_->tile_rows * (during.K / kTermsPerFetch), 1);
  return {elements_.lines.data() + (by_columns ? shape.first_column : k), count, begin, end,
          divide_up(lines, times)};
}

Range Matrix::next_group(const Range& panels, int64_t rows, bool backwards) const {
  const int64_t most =
      std::min(whole_ ? panel_count() : panels_at_once(rows), panels.end - panels.begin);
  const int64_t first = backwards ? panels.end - 1 : panels.begin, step = backwards ? -1 : 1;
  int64_t count = 1;
  while (count < most && width(first + step * count) == width(first)) ++count;
  return backwards ? Range{panels.end - count, panels.end}
                   : Range{panels.begin, panels.begin + count};
}

PanelProduct Matrix::product_of(const Range& panels, const void* const* a, int64_t rows, int64_t k,
                                int64_t terms, const Destination& to, int64_t origin) const {
  const int64_t count = panels.end - panels.begin;
  const Range of = columns(panels);
  PanelShape shape{of.begin - origin, of.end - of.begin, width(panels.begin) / gemm_->lanes};
  if (to.whole_vectors) shape.columns = count * width(panels.begin);
  PanelProduct product{a, rows, k, terms, nullptr, shape, to.rows, to.accumulate || k > 0};
  if (k == 0) product.bias = to.bias;
  product.panels = count, product.c_is_16_bit = to.c_is_16_bit;
  return product;
}

void Matrix::multiply_panels(const Range& panels, const void* const* a, int64_t rows, int64_t piece,
                             const Destination& to, Scratch& room) const {
  if (rows == 0) return;  // libraries refuse empty products
  if (form_ == MatrixForm::kInPlace && elements_.transposed)
    multiply_as_it_lies(panels, a, rows, piece, to);
  else if (form_ == MatrixForm::kInPlace)
    multiply_unpacked_rows(panels, a, rows, piece, to, room);
  else if (form_ == MatrixForm::kPanelOnDemand)
    multiply_in_use(panels, a, rows, piece, to, room);
  else
    multiply_packed(panels, a, rows, piece, to);
}

void Matrix::multiply_packed(const Range& panels, const void* const* a, int64_t rows, int64_t piece,
                             const Destination& to) const {
  const int64_t origin = to.whole_vectors ? columns(panels).begin : 0;
  for (int64_t k = 0; k == 0 || k < K_; k += piece)
    for_panel_groups(panels, rows, [&](const Range& group) {
      PanelProduct part = product_of(group, a, rows, k, std::min(piece, K_ - k), to, origin);
      part.panel = panel(group.begin) + width(group.begin) * gemm_->bytes(k);
      part.panel_stride = width(group.begin) * bytes_of_column();
      gemm_->multiply(part);
    });
}

void Matrix::multiply_in_use(const Range& panels, const void* const* a, int64_t rows, int64_t piece,
                             const Destination& to, Scratch& room) const {
  const int64_t origin = to.whole_vectors ? columns(panels).begin : 0;
  const int64_t terms = round_up(std::min(piece, K_), gemm_->k_multiple);
  const int64_t pieces = divide_up(K_, terms), bytes = gemm_->max_width() * gemm_->bytes(terms);
  if (room.nbytes() < bytes) room = Scratch(bytes);
  const auto terms_of = [&](int64_t i) { return std::min(terms, K_ - i % pieces * terms); };
  for (int64_t i = panels.begin * pieces; i < panels.end * pieces; ++i) {
    const int64_t p = i / pieces, k = i % pieces * terms;
    gemm_->pack(elements_.rows(), k, terms_of(i), shape(p), room.data<void>());
    PanelProduct part = product_of({p, p + 1}, a, rows, k, terms_of(i), to, origin);
    part.panel = room.data<void>();
    Prefetch prefetch{};
    if (i + 1 < panel_count() * pieces && rows < kMaxRowsToPrefetch) {
      prefetch = fetch((i + 1) / pieces, (i + 1) % pieces * terms, terms_of(i + 1), part);
      part.prefetch = &prefetch;
    }
    gemm_->multiply(part);
  }
}

Columns Matrix::columns_of(int64_t panel) const {
  const char* const first = const_data<char>(elements_.owner);
  if (!elements_.transposed) {
    const auto [begin, end] = columns({panel, panel + 1});
    return {first + gemm_->bytes(begin), N_, end - begin};
  }
  const int64_t gates = elements_.gates, of_gate = elements_.owner.size(0) / gates;
  const int64_t column = panel / gates * gemm_->lanes;
  return {first + gemm_->bytes((panel % gates * of_gate + column) * K_), K_,
          std::min(gemm_->lanes, of_gate - column)};
}

// Memory is read in its order: gate after gate, in each the vectors of its units, of each its
// terms.
void Matrix::multiply_as_it_lies(const Range& panels, const void* const* a, int64_t rows,
                                 int64_t piece, const Destination& to) const {
  const int64_t origin = to.whole_vectors ? columns(panels).begin : 0;
  const int64_t gates = elements_.gates;
  for (int64_t gate = 0; gate < gates; ++gate)
    for (int64_t p = panels.begin + gate; p < panels.end; p += gates) {
      PanelProduct some = product_of({p, p + 1}, a, rows, 0, K_, to, origin);
      const int64_t of_next_gate = std::min(panels.begin + (gate + 1) % gates, panels.end - 1);
      const int64_t after = p + gates < panels.end ? p + gates : of_next_gate;
      const Columns vector = columns_of(p);
      for (int64_t k = 0; k < K_; k += piece) {
        const int64_t end = std::min(k + piece, K_);
        const char* const next =
            static_cast<const char*>(end < K_ ? vector.first : columns_of(after).first);
        some.k_begin = k, some.K = end - k, some.accumulate = to.accumulate || k > 0;
        gemm_->multiply_unpacked_columns(some, vector, next + gemm_->bytes(end % K_));
      }
    }
}

void Matrix::multiply_unpacked_rows(const Range& panels, const void* const* a, int64_t rows,
                                    int64_t piece, const Destination& to, Scratch& room) const {
  const int64_t origin = to.whole_vectors ? columns(panels).begin : 0;
  const int64_t bytes = 2 * rows * max_panel_width() * bytes_of(gemm_->sum_dtype);
  if (room.nbytes() < bytes) room = Scratch(bytes);
  for (int64_t p = panels.begin; p < panels.end; ++p)
    for (int64_t k = 0; k < K_; k += piece) {
      const int64_t terms = std::min(piece, K_ - k);
      gemm_->multiply_unpacked_rows(product_of({p, p + 1}, a, rows, k, terms, to, origin),
                                    columns_of(p), room.data<void>());
    }
}

Matrix matrix_of(const GemmKernels& gemm, const at::Tensor& w, bool transposed, int64_t pieces,
                 MatrixForm form) {
  const int64_t rows = w.size(0), columns = w.size(1);
  std::vector<const void*> lines;
  if (form != MatrixForm::kInPlace)
    lines = row_pointers(const_data<char>(w), rows, columns * w.element_size());
  return {
      gemm,
      {std::move(lines), transposed, transposed ? columns : rows, transposed ? rows : columns, w},
      pieces,
      form};
}

Matrix gate_matrix_of(const GemmKernels& gemm, const at::Tensor& w, MatrixForm form) {
  const int64_t lanes = gemm.lanes, hidden = w.size(0) / 4, K = w.size(1);
  const int64_t columns = gate_columns(hidden, lanes), bytes_of_row = K * w.element_size();
  std::vector<const void*> lines;
  if (form != MatrixForm::kInPlace) lines.reserve(columns);
  for (int64_t first = 0; first < hidden && form != MatrixForm::kInPlace; first += lanes)
    for (int64_t gate = 0; gate < kGates; ++gate)
      for (int64_t unit = first; unit < first + lanes; ++unit)  // any where there is none
        lines.push_back(const_data<char>(w) +
                        (gate * hidden + std::min(unit, hidden - 1)) * bytes_of_row);
  return {gemm, {std::move(lines), true, K, columns, w, kGates}, 1, form};
}

void parallel_gemm(const std::vector<const void*>& a, const Matrix& matrix, const Destination& to) {
  const GemmKernels& gemm = matrix.gemm();
  const int64_t rows = a.size(), K = matrix.K();
  divide_among_threads(gemm, rows, K * matrix.N(), matrix.panel_count(), matrix.form(),
                       [&](int64_t begin, int64_t end, const Range& panels) {
                         Scratch room;
                         Destination sums = to;
                         sums.rows += begin;
                         matrix.multiply_panels(panels, a.data() + begin, end - begin,
                                                to.c_is_16_bit ? K : gemm.kc, sums, room);
                       });
}

template <typename T>
void parallel_gemm_into(const std::vector<const void*>& a, const Matrix& matrix,
                        const std::vector<void*>& c, bool accumulate) {
  constexpr bool kRounds = sizeof(T) == 2;
  if (!kRounds || matrix.gemm().takes(dtype_of_rows<T>))
    return parallel_gemm(a, matrix,
                         {.rows = c.data(), .accumulate = accumulate, .c_is_16_bit = kRounds});
  const int64_t rows = a.size(), N = matrix.N();
  const Scratch buffer = scratch<float>(rows * N);
  parallel_gemm(a, matrix, {row_pointers(buffer.data<float>(), rows, N).data()});
  at::parallel_for(0, rows, 1 + (1 << 15) / N, [&](int64_t r, int64_t last) {
    for (; r < last; ++r) {
      const float* const sums = buffer.data<float>() + r * N;
      T* const to = static_cast<T*>(c[r]);
      for (int64_t n = 0; n < N; ++n) to[n] = T(accumulate ? float(to[n]) + sums[n] : sums[n]);
    }
  });
}
#define FASTLSTM_INSTANTIATE(T, A, name)                                              \
  template void parallel_gemm_into<T>(const std::vector<const void*>&, const Matrix&, \
                                      const std::vector<void*>&, bool);
FASTLSTM_FOR_EACH_DTYPE(FASTLSTM_INSTANTIATE)
#undef FASTLSTM_INSTANTIATE

void weight_gradient_gemm(const GemmKernels& gemm, const std::vector<const void*>& a, int64_t M,
                          const std::vector<WeightGradient>& parts, void* sums, bool accumulate) {
  const int64_t bytes_of_sum = bytes_of(gemm.sum_dtype);
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
    std::vector<Matrix> packed;
    int64_t multiply_adds = 0;  // of a row
    for (const auto& part : parts) {
      const auto first = part.b.begin() + std::min<int64_t>(r, part.b.size());
      const auto last = part.b.begin() + std::min<int64_t>(r + K, part.b.size());
      // With few terms the sums are many, and are written row by row, through all panels.
      const int64_t bytes = gemm.bytes((last - first) * part.N);
      const bool by_rows = gemm.takes(gemm.sum_dtype) && bytes <= kBytesOfFewTerms;
      packed.emplace_back(gemm, MatrixSource{{first, last}, false, last - first, part.N},
                          by_rows ? kAllTogether : 1);
      multiply_adds += (last - first) * part.N;
    }
    const auto pass_rows = [&](int64_t begin, int64_t end, const Range&) {
      const int64_t bytes_of_row = gemm.bytes_of_row(K);
      const Scratch transposed((end - begin) * bytes_of_row);
      gemm.transpose(a.data() + r, K, begin, end, transposed.data<char>());
      const char* const first = transposed.data<char>();
      const auto a_rows = row_pointers(first, end - begin, bytes_of_row);
      if (sums)
        gemm.sum_rows(a_rows.data(), end - begin, K,
                      static_cast<char*>(sums) + begin * bytes_of_sum, accumulate);
      Scratch room;
      for (size_t i = 0; i < parts.size(); ++i)
        packed[i].multiply_panels({0, packed[i].panel_count()}, a_rows.data(), end - begin,
                                  kGradientRows, {c[i].data() + begin, nullptr, accumulate}, room);
    };
    divide_among_threads(gemm, M, multiply_adds, /*panels=*/0, MatrixForm::kPanels, pass_rows);
  }
}

const void* Accumulators::multiply(const Matrix& matrix, const Range& panels, const void* const* a,
                                   int64_t rows, int64_t piece, const void* zeros,
                                   const void* bias) {
  if (std::all_of(a, a + rows, [zeros](const void* row) { return row == zeros; }))
    std::memset(rows_[0], 0, rows * bytes_of_row_);
  else
    matrix.multiply_panels(panels, a, rows, piece,
                           {.rows = rows_.data(), .bias = bias, .whole_vectors = true}, room_);
  return rows_[0];
}

}  // namespace fastlstm
