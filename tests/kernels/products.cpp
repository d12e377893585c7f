// The CPU kernels for matrix products, packing, encoding and transposing, against plain loops.
#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstring>
#include <deque>

#include "parts.h"
#include "targets.h"

namespace {

using namespace fastlstm;
using namespace testing;

// Returns a random length near the lengths at which the kernels split a sum or a loop.
int64_t random_terms(Random& random) {
  const int64_t around[] = {1, 8, 16, 32, 64, 256, 512};
  return std::max<int64_t>(1, around[random.between(0, 6)] + random.between(-5, 5));
}

// A matrix with its own memory for each row, because the kernels get a pointer for each row.
template <typename T>
struct Matrix {
  Matrix(int64_t row_count, int64_t columns, T value = T()) : rows(row_count) {
    for (auto& row : rows) row.assign(columns, value), pointers.push_back(row.data());
  }
  Matrix(int64_t row_count, int64_t columns, Random& random) : Matrix(row_count, columns) {
    for (auto& row : rows)
      for (T& x : row) x = random.number<T>();
  }
  Matrix(Matrix&&) = default;
  void* const* row_pointers() const { return pointers.data(); }
  std::vector<T> joined() const {
    std::vector<T> all;
    for (const auto& row : rows) all.insert(all.end(), row.begin(), row.end());
    return all;
  }
  std::vector<std::vector<T>> rows;
  std::vector<void*> pointers;
};

template <typename T>
bool same_bits(const T& x, const T& y) {
  return std::memcmp(&x, &y, sizeof x) == 0;
}
template <typename T>
void check_same(const Matrix<T>& actual, const Matrix<T>& expected, const std::string& what) {
  for (size_t r = 0; r < expected.rows.size(); ++r)
    for (size_t n = 0; n < expected.rows[r].size(); ++n)
      check(same_bits(actual.rows[r][n], expected.rows[r][n]), what, ": row ", r, ", column ", n,
            ": ", to_double(actual.rows[r][n]), ", expected ", to_double(expected.rows[r][n]));
}

// A matrix of K rows and N columns, packed into panels of a product.
template <typename T>
struct Panels {
  struct Panel {
    PanelShape shape;
    int64_t offset;
  };
  std::vector<Panel> all;
  std::vector<T> data;

  Panels(const GemmKernels& gemm, const MatrixRows& matrix, int64_t k_begin, int64_t K, int64_t N) {
    const int64_t header = gemm.header_bytes / int64_t(sizeof(T));
    const int64_t terms = round_up(K, gemm.k_multiple);
    const int64_t elements_per_column = header + gemm.bytes(terms) / int64_t(sizeof(T));
    int64_t size = 0;
    for (int64_t column = 0; column < N;) {
      const int64_t narrowest = gemm.vectors_multiple * gemm.lanes;
      const int64_t parts = divide_up(N - column, narrowest);
      const int64_t vectors = std::min<int64_t>(parts * gemm.vectors_multiple, gemm.max_vectors);
      const int64_t width = vectors * gemm.lanes;
      all.push_back({{column, std::min(N - column, width), vectors}, size});
      column += width, size += width * elements_per_column;
    }
    data = testing::unwritten<T>(size);
    for (const auto& [shape, offset] : all)
      if (gemm.pack)
        gemm.pack(matrix, k_begin, K, shape, &data[offset] + shape.vectors * gemm.lanes * header);
  }

  // Calls run(product) for all rows and panels, at most `max_rows` and `max_panels` of them a call.
  // Panels of a call have one width. product_of(panel, first row, count) returns the product with
  // one panel.
  void multiply(int64_t rows, int64_t max_rows, int64_t max_panels, const auto& product_of,
                const auto& run) const {
    for (int64_t first = 0; first < rows; first += max_rows)
      for (size_t p = 0, next; p < all.size(); p = next) {
        PanelProduct product = product_of(p, first, std::min(max_rows, rows - first));
        for (next = p + 1; next < all.size() && product.panels < max_panels &&
                           all[next].shape.vectors == product.shape.vectors;
             ++next, ++product.panels) {
          product.shape.columns += all[next].shape.columns;
          product.panel_stride = (all[p + 1].offset - all[p].offset) * int64_t(sizeof(T));
        }
        run(product);
      }
  }
};

// The first term of each sum: zero, a bias for each column, or the value in the destination c.
enum class FirstTerm { kZero, kBias, kC };

// A random product of a matrix a [rows,k_begin + K] with b, over the terms [k_begin, k_begin + K).
template <typename T>
struct Problem {
  using A = State_t<T>;
  const GemmKernels& gemm;
  Random random;
  const int64_t rows = random.between(1, 2 * gemm.tile_rows + 1), k_begin = random.between(0, 3);
  const int64_t K = random_terms(random), N = random.between(1, 9 * gemm.lanes + 1);
  const bool transposed = random.coin();  // b is [N,k_begin + K] if true, else [k_begin + K,N]
  const FirstTerm first_term = FirstTerm(random.between(0, 2));
  Matrix<T> a{rows, k_begin + K, random};
  Matrix<T> b{transposed ? N : k_begin + K, transposed ? k_begin + K : N, random};
  Matrix<A> bias{1, N, random};
  Matrix<A> old_c{rows, N, random};  // the value of c to which the products are added if kC
  Panels<T> panels{gemm, {b.row_pointers(), transposed}, k_begin, K, N};

  Problem(const GemmKernels& gemm, unsigned seed) : gemm(gemm), random(seed) {}

  // The product of rows [first, first + count) with one panel, written to c.
  PanelProduct panel_product(size_t panel, int64_t first, int64_t count, void* const* c,
                             FirstTerm first_term) const {
    const auto& [shape, offset] = panels.all[panel];
    const bool adds = first_term == FirstTerm::kC;
    const void* const bias_row = first_term == FirstTerm::kBias ? bias.pointers[0] : nullptr;
    return {&a.pointers[first], count, k_begin, K, &panels.data[offset], shape,
            c + first,          adds,  bias_row};
  }
  void multiply(const auto& c, int64_t max_rows, int64_t max_panels, const auto& run) const {
    const auto product_of = [&](size_t panel, int64_t first, int64_t count) {
      return panel_product(panel, first, count, c.row_pointers(), first_term);
    };
    panels.multiply(rows, max_rows, max_panels, product_of, run);
  }
  // Initializes a destination: with `old_c`, or with NaN if the products overwrite it.
  template <typename C>
  void fill(Matrix<C>& c) const {
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t n = 0; n < N; ++n)
        c.rows[r][n] =
            from_double<C>(first_term == FirstTerm::kC ? to_double(old_c.rows[r][n]) : NAN);
  }
  std::string text() const {
    return testing::text(rows, " rows, terms [", k_begin, ", ", k_begin + K, "), ", N,
                         " columns, transposed ", transposed, ", first term ", int(first_term));
  }

  void check_sums(const Matrix<A>& c) const {
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t n = 0; n < N; ++n) {
        double sum = 0, magnitude = 0;
        if (first_term != FirstTerm::kZero)
          sum = to_double(first_term == FirstTerm::kBias ? bias.rows[0][n] : old_c.rows[r][n]);
        magnitude = std::fabs(sum);
        for (int64_t k = k_begin; k < k_begin + K; ++k) {
          const double term =
              to_double(a.rows[r][k]) * to_double(transposed ? b.rows[n][k] : b.rows[k][n]);
          sum += term, magnitude += std::fabs(term);
        }
        const double error = std::fabs(to_double(c.rows[r][n]) - sum);
        check(error <= (2 + std::sqrt(double(K))) * roundoff<A>() * magnitude, this->text(),
              ": row ", r, ", column ", n, ": ", to_double(c.rows[r][n]), ", expected ", sum);
      }
  }

  // Checks the sums, and that every other way to compute them gives the same bits.
  void run() const {
    Matrix<A> c(rows, N), other(rows, N);
    const bool on_amx = gemm.end_thread;  // AMX adds in another order; only its kernels have this
    if (!gemm.multiply) {                 // kernels only for weights in place
      if (transposed) check_sums(unpacked_columns<A>());
      return;
    }
    fill(c);
    multiply(c, rows, 1, gemm.multiply);
    check_sums(c);

    fill(other);
    multiply(other, 1, gemm.panels_at_once, [&](auto p) { p.backwards = true, gemm.multiply(p); });
    check_same(other, c, text() + ": row by row, backwards");

    check_destinations();
    if (transposed && !on_amx) check_same(unpacked_columns<A>(), c, text() + ": unpacked columns");
    if (!gemm.trains()) return;  // kernels only for prepacked weights
    fill(other);
    const void* const fetched[] = {a.pointers[0]};
    Prefetch prefetch{fetched, 1, 0, 4, 1};
    multiply(other, rows, gemm.panels_at_once,
             [&](auto p) { p.prefetch = &prefetch, gemm.multiply(p); });
    check_same(other, c, text() + ": with prefetch");

    if (!transposed && !on_amx) check_same(unpacked_rows<A>(), c, text() + ": unpacked rows");
    if (!gemm.put_rows) return;  // sums of float32 and float64 are not rounded
    Matrix<T> rounded(rows, N), expected(rows, N);
    fill(rounded);
    multiply(rounded, rows, gemm.panels_at_once,
             [&](auto p) { p.c_is_16_bit = true, gemm.multiply(p); });
    fill(expected);
    put_rows(expected);
    if (!on_amx || first_term != FirstTerm::kBias)  // AMX may begin a sum with the bias
      check_same(rounded, expected, text() + ": rounded");
    if (transposed && !on_amx)
      check_same(unpacked_columns<T>(), rounded, text() + ": rounded unpacked columns");
    if (!transposed && !on_amx)
      check_same(unpacked_rows<T>(), rounded, text() + ": rounded unpacked rows");
    if (first_term != FirstTerm::kC) {
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t n = 0; n < N; ++n)
          expected.rows[r][n] = from_double<T>(to_double(c.rows[r][n]));
      check_same(rounded, expected, text() + ": rounded once");
    }
  }

  // Checks that c gets the same bits if each row has its own memory and if all are at one stride,
  // and that the columns that pad a panel are zeros.
  void check_destinations() const {
    const int64_t width = round_up(N, gemm.max_width());
    std::vector<A> padded_bias(width), at_one_stride(rows * width);
    std::copy_n(bias.rows[0].begin(), N, padded_bias.begin());
    Matrix<A> apart(rows, width), together(rows, width);
    const auto multiply_to = [&](void* const* c) {
      for (size_t p = 0; p < panels.all.size(); ++p) {
        auto product = panel_product(p, 0, rows, c, first_term);
        product.shape.columns = product.shape.vectors * gemm.lanes;
        if (product.bias) product.bias = padded_bias.data();
        gemm.multiply(product);
      }
    };
    multiply_to(apart.row_pointers());
    for (const auto& row : apart.rows)
      check(std::count(row.begin() + N, row.end(), A()) == width - N, text(), ": padding");
    multiply_to(rows_of(at_one_stride.data(), rows, width).data());
    for (int64_t r = 0; r < rows; ++r)
      std::copy_n(&at_one_stride[r * width], width, together.rows[r].begin());
    check_same(together, apart, text() + ": rows at one stride");
  }

  // Computes c in two steps: the sums into a buffer of whole vectors, then put_rows to c.
  void put_rows(Matrix<T>& c) const {
    for (size_t p = 0; p < panels.all.size(); ++p) {
      const int64_t width = panels.all[p].shape.vectors * gemm.lanes;
      std::vector<A> buffer(rows * width);
      const auto to = rows_of(buffer.data(), rows, width);
      auto product = panel_product(p, 0, rows, to.data(), FirstTerm::kZero);
      product.shape.first_column = 0, product.shape.columns = width;
      gemm.multiply(product);
      gemm.put_rows(panel_product(p, 0, rows, c.row_pointers(), first_term), buffer.data(), width);
    }
  }

  // Returns the product with columns that are not packed.
  template <typename C>
  Matrix<C> unpacked_columns() const {
    Matrix<C> all(rows, N);
    const int64_t lanes = gemm.lanes, stride = b.rows[0].size();
    const std::vector<T> columns = b.joined();  // [N,k_begin + K]
    const int64_t max_width = gemm.unpacked_vectors_of_one_row * lanes;
    std::vector<A> padded_bias(N + max_width);
    if (first_term == FirstTerm::kBias) std::copy_n(bias.rows[0].begin(), N, padded_bias.begin());
    const int64_t width = rows == 1 ? max_width : lanes;
    for (int64_t n = 0; n < N; n += width) {
      const int64_t count = std::min(width, N - n);
      Matrix<C> c(rows, N + width);
      fill(c);
      std::vector<void*> to;
      for (auto& row : c.rows) to.push_back(&row[n]);
      auto product = panel_product(0, 0, rows, to.data(), first_term);
      product.panel = nullptr, product.shape = {0, width, 1}, product.c_is_16_bit = sizeof(C) == 2;
      if (product.bias) product.bias = &padded_bias[n];
      const T* const from = &columns[n * stride];
      gemm.multiply_unpacked_columns(product, {from, stride, count}, from);
      for (int64_t r = 0; r < rows; ++r) std::copy_n(&c.rows[r][n], count, all.rows[r].begin() + n);
    }
    return all;
  }

  // Returns the product with rows of b that are not packed.
  template <typename C>
  Matrix<C> unpacked_rows() const {
    const int64_t vectors = divide_up(N, gemm.lanes);
    const std::vector<T> elements = b.joined();
    std::vector<A> buffer(2 * rows * vectors * gemm.lanes);
    Matrix<C> c(rows, N);
    fill(c);
    auto product = panel_product(0, 0, rows, c.row_pointers(), first_term);
    product.panel = nullptr, product.shape = {0, N, vectors}, product.c_is_16_bit = sizeof(C) == 2;
    gemm.multiply_unpacked_rows(product, {elements.data(), N, N}, buffer.data());
    return c;
  }
};

template <typename T>
void check_transpose(const GemmKernels& gemm, unsigned seed) {
  Random random(seed);
  const int64_t rows = random.between(1, 70), columns = random.between(1, 150);
  const int64_t begin = random.between(0, columns), end = random.between(begin, columns);
  const Matrix<T> from(rows, columns, random);
  std::vector<T> to(rows * (end - begin));
  gemm.transpose(from.row_pointers(), rows, begin, end, to.data());
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t m = begin; m < end; ++m)
      check(same_bits(to[(m - begin) * rows + r], from.rows[r][m]), "transposed [", rows, ", ",
            columns, "]: row ", r, ", column ", m);
}

template <typename T>
void check_sum_rows(const GemmKernels& gemm, unsigned seed) {
  using A = State_t<T>;
  Random random(seed);
  const int64_t rows = random.between(1, 5), K = random_terms(random);
  const bool accumulate = random.coin();
  const Matrix<T> matrix(rows, K, random);
  std::vector<A> sums(rows, accumulate ? A(0.5) : A(NAN));
  gemm.sum_rows(matrix.row_pointers(), rows, K, sums.data(), accumulate);
  for (int64_t r = 0; r < rows; ++r) {
    double sum = accumulate ? 0.5 : 0, magnitude = sum;
    for (T x : matrix.rows[r]) sum += to_double(x), magnitude += std::fabs(to_double(x));
    check(std::fabs(sums[r] - sum) <= (2 + std::sqrt(double(K))) * roundoff<A>() * magnitude,
          "sum of row ", r, " of ", K, " terms: ", sums[r], ", expected ", sum);
  }
}

// Checks that float32 rows are encoded as bfloat16, padded with zeros.
void check_encoded(const GemmKernels& gemm, unsigned seed) {
  Random random(seed);
  const int64_t K = random_terms(random);
  const Matrix<float> row(1, K, random);
  std::vector<bfloat16> encoded(gemm.encoded_bytes(K) / 2);
  gemm.encode(row.pointers[0], K, encoded.data());
  for (size_t k = 0; k < encoded.size(); ++k)
    check(encoded[k].bits == bfloat16(k < size_t(K) ? row.rows[0][k] : 0.0f).bits, "encoded ", k,
          " of ", K);
}

float scale_of(const void* encoded) {
  float scale;
  std::memcpy(&scale, encoded, sizeof scale);
  return scale;
}
// The k-th element of an encoded row, as a number in -127 .. 127.
int term_of(const GemmKernels& gemm, const int8_t* encoded, int64_t k) {
  return static_cast<int8_t>(encoded[kInt8RowHeader + k] - gemm.zero_point);
}

// A random product in int8: encoded float32 rows times int8 weights with a scale for each column.
struct Int8Problem {
  const GemmKernels& gemm;
  Random random;
  const int64_t rows = random.between(1, 2 * gemm.tile_rows + 1), K = random_terms(random);
  const int64_t N = random.between(1, 9 * gemm.lanes + 1);
  Matrix<float> source{rows, K, random}, scales{1, N, random};
  Matrix<int8_t> weights{N, K}, encoded{rows, gemm.encoded_bytes(K)};

  Int8Problem(const GemmKernels& gemm, unsigned seed) : gemm(gemm), random(seed) {
    for (auto& column : weights.rows)
      for (int8_t& w : column) w = static_cast<int8_t>(random.between(-127, 127));
  }

  int term(int64_t r, int64_t k) const { return term_of(gemm, encoded.rows[r].data(), k); }

  // Encodes the rows and checks the rounding error.
  void encode() {
    for (int64_t r = 0; r < rows; ++r) {
      gemm.encode(source.pointers[r], K, encoded.pointers[r]);
      const float scale = scale_of(encoded.pointers[r]);
      int largest = 0;
      for (int64_t k = 0; k < K; ++k) {
        largest = std::max(largest, std::abs(term(r, k)));
        check(std::fabs(term(r, k) * scale - source.rows[r][k]) <= 0.5001f * scale, "encoded ", k,
              " of ", K, ": ", term(r, k), " times ", scale, ", expected ", source.rows[r][k]);
      }
      check(largest == 127, "the largest element is ", largest, ", expected 127");
    }
  }

  // Packs the weights with their scales, and checks that they can be unpacked.
  Panels<int8_t> pack() const {
    Panels<int8_t> panels(gemm, {weights.row_pointers(), true}, 0, K, N);
    for (const auto& [shape, offset] : panels.all) {
      const int64_t width = shape.vectors * gemm.lanes;
      auto* const panel = reinterpret_cast<char*>(&panels.data[offset]);
      std::memset(panel, 0, width * gemm.header_bytes);
      for (int64_t n = 0; n < shape.columns; ++n) {
        const PanelColumn column{panel, width, K, n};
        const size_t index = shape.first_column + n;
        gemm.put_scale(column, scales.rows[0][index]);
        check_unpacked(column, index);
      }
    }
    return panels;
  }
  void check_unpacked(const PanelColumn& column, size_t n) const {
    std::vector<int8_t> elements(K);
    float scale;
    gemm.unpack(column, elements.data(), &scale);
    check(elements == weights.rows[n] && scale == scales.rows[0][n], "column ", n, " of ", K,
          " terms differs after unpacking");
  }

  // The product of rows [first, first + count) of a with one panel, added to c.
  PanelProduct panel_product(const Matrix<int8_t>& a, int64_t first, int64_t count,
                             const Panels<int8_t>& panels, size_t panel, Matrix<float>& c) const {
    const auto& [shape, offset] = panels.all[panel];
    return {&a.pointers[first], count, 0, K, &panels.data[offset], shape, &c.pointers[first], true};
  }
  void multiply(const Matrix<int8_t>& a, const Panels<int8_t>& panels, int64_t max_rows,
                int64_t max_panels, Matrix<float>& c) const {
    const auto product_of = [&](size_t panel, int64_t first, int64_t count) {
      return panel_product(a, first, count, panels, panel, c);
    };
    panels.multiply(a.rows.size(), max_rows, max_panels, product_of, gemm.multiply);
  }

  void run() {
    encode();
    const Panels<int8_t> panels = pack();
    Matrix<float> c(rows, N, 0.25f), row_by_row(rows, N, 0.25f);
    multiply(encoded, panels, rows, 1, c);
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t n = 0; n < N; ++n) {
        int64_t sum = 0;  // exact
        for (int64_t k = 0; k < K; ++k) sum += term(r, k) * weights.rows[n][k];
        const double product = double(sum) * scale_of(encoded.pointers[r]) * scales.rows[0][n];
        check(std::fabs(c.rows[r][n] - (0.25 + product)) <=
                  4 * roundoff<float>() * (0.25 + std::fabs(product)),
              rows, " rows, ", K, " terms, ", N, " columns: row ", r, ", column ", n, ": ",
              c.rows[r][n], ", expected ", 0.25 + product);
      }
    multiply(encoded, panels, 1, gemm.panels_at_once, row_by_row);
    check_same(row_by_row, c, "row by row");
    check_put_rows(panels, c);
    check_zeros(panels);
  }

  // Checks put_rows with the sums that AMX's tiles compute: from elements with zero_point added.
  void check_put_rows(const Panels<int8_t>& panels, const Matrix<float>& expected) const {
    Matrix<float> c(rows, N, 0.25f);
    for (size_t p = 0; p < panels.all.size(); ++p) {
      const PanelShape& shape = panels.all[p].shape;
      const int64_t width = shape.vectors * gemm.lanes;
      std::vector<int32_t> sums(rows * width);
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t n = 0; n < shape.columns; ++n)
          for (int64_t k = 0; k < K; ++k)
            sums[r * width + n] +=
                (term(r, k) + gemm.zero_point) * weights.rows[shape.first_column + n][k];
      gemm.put_rows(panel_product(encoded, 0, rows, panels, p, c), sums.data(), width);
    }
    check_same(c, expected, "put rows");
  }

  // Checks that an encoded row of zero bytes adds nothing.
  void check_zeros(const Panels<int8_t>& panels) const {
    Matrix<float> c(1, N, 0.25f);
    multiply(Matrix<int8_t>(1, gemm.encoded_bytes(K)), panels, 1, 1, c);
    check_same(c, Matrix<float>(1, N, 0.25f), "zeros");
  }
};

// Checks how int8 encodes rows with a NaN or an infinity, and rows of equal tiny or huge values.
void check_encoded_special(const GemmKernels& gemm) {
  constexpr int64_t K = 37;
  std::vector<int8_t> encoded(gemm.encoded_bytes(K));
  const auto encode = [&](const std::vector<float>& row) {
    gemm.encode(row.data(), K, encoded.data());
    return scale_of(encoded.data());
  };
  for (const float x : {NAN, -NAN, INFINITY, -INFINITY}) {
    std::vector<float> row(K, 1.0f);
    row.back() = x;
    const float scale = encode(row);
    if (std::isnan(x)) {
      check(std::isnan(scale), "the scale of a row with ", x, " is ", scale, ", expected NaN");
      continue;
    }
    // The scale is large but finite, so that products are finite. All other elements become zero.
    const int last = term_of(gemm, encoded.data(), K - 1), first = term_of(gemm, encoded.data(), 0);
    check(scale == 0x1p100f && last == (x > 0 ? 1 : -1) && first == 0, "a row with ", x,
          " has the scale ", scale, " and ends with ", last);
  }
  for (const float x : {0.0f, -0.0f, 1e-45f, 0x1p-100f, 0x1p-99f, FLT_MAX, -FLT_MAX}) {
    const float scale = encode(std::vector<float>(K, x));
    const int sign = x > 0x1p-100f ? 1 : x < -0x1p-100f ? -1 : 0;
    check(scale == (sign ? std::fabs(x) / 127 : 0), "the scale of ", x, " is ", scale);
    for (int64_t k = 0; k < K; ++k)
      check(term_of(gemm, encoded.data(), k) == 127 * sign, x, " became ",
            term_of(gemm, encoded.data(), k), ", expected ", 127 * sign);
  }
}

template <typename T>
void add_cases(const GemmKernels& gemm) {
  const std::string prefix = text("products/", gemm.instruction_set, "/", name_of<T>(), "/");
  add_random_case(prefix + "products", [&](unsigned seed) { Problem<T>(gemm, seed).run(); });
  if constexpr (std::is_same_v<T, bfloat16>)
    add_random_case(prefix + "encoded rows", [&](unsigned seed) { check_encoded(gemm, seed); });
  if (!gemm.transpose) return;
  add_random_case(prefix + "transpose", [&](unsigned seed) { check_transpose<T>(gemm, seed); });
  add_random_case(prefix + "sums of rows", [&](unsigned seed) { check_sum_rows<T>(gemm, seed); });
}

void add_int8(const GemmKernels& gemm) {
  const std::string prefix = text("products/", gemm.instruction_set, "/int8/");
  add_random_case(prefix + "products", [&](unsigned seed) { Int8Problem(gemm, seed).run(); });
  Case(prefix + "special values", [&] { check_encoded_special(gemm); });
}

#if defined(__x86_64__) && defined(__linux__)
void add_tiles(AmxGemms (*amx_gemms)()) {
  static std::deque<AmxGemms> gemms_of_cases;
  const AmxGemms& amx = gemms_of_cases.emplace_back(amx_gemms());
  add_cases<bfloat16>(amx.bfloat16), add_int8(amx.int8);
}
#endif

const bool added = [] {
  for (const KernelTable& table : testing::tables()) {
    add_cases<float>(*table.gemms[Format::float32]);
    add_cases<double>(*table.gemms[Format::float64]);
    add_cases<bfloat16>(*table.gemms[Format::bfloat16]);
    add_cases<float16>(*table.gemms[Format::float16]);
    add_int8(*table.gemms[Format::int8]);
  }
#if defined(__x86_64__) && defined(__linux__)
  const KernelTable last = testing::tables().back();
  if (last.target != std::string("avx512") || !last.gemms[Format::bfloat16]->trains()) return true;
  add_tiles(amx_emulated::amx_gemms);
  if (testing::has_amx()) add_tiles(amx::amx_gemms);
#endif
  return true;
}();

}  // namespace
