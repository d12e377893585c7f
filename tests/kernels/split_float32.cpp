// The product of float32 as three products of bfloat16 on AMX's tiles. It is compared with float64
// and with plain float32, and the emulated tiles are compared with those of the processor.
#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstring>

#include "parts.h"
#include "targets.h"
#if defined(__x86_64__) && defined(__linux__)

namespace {

using namespace fastlstm;
using namespace testing;

// A random product a [rows,K] times b.
struct Problem {
  Random random;
  int64_t rows = random.between(1, 70), N = random.between(1, 128);
  int64_t K = random.between(1, 3) == 1 ? random.between(1, 40) : random.between(200, 700);
  bool transposed = random.coin();       // b is [N,K] if true, else [K,N]
  int64_t moved = random.between(0, 3);  // these last encoded rows of a come first in memory
  bool accumulate = random.coin();       // whether the product is added to `before`
  bool adds_bias = random.coin();
  std::vector<float> a = numbers(rows * K), b = numbers(N * K);
  std::vector<float> bias = numbers(N), before = numbers(rows * N);

  explicit Problem(unsigned seed) : random(seed) {}

  // Random numbers, either of about the same magnitude or of magnitudes between 1e-5 and 1e5.
  std::vector<float> numbers(int64_t count) {
    const int64_t decades = random.between(0, 3) == 0 ? 5 : 0;
    std::vector<float> all(count);
    for (float& x : all)
      x = random.number<float>() * std::pow(10.0f, float(random.between(-decades, decades)));
    return all;
  }
  float weight(int64_t k, int64_t n) const { return transposed ? b[n * K + k] : b[k * N + n]; }

  // Encodes a, packs b, and returns the result [rows,N].
  std::vector<float> run(const GemmKernels& gemm) const {
    const int64_t size = gemm.encoded_bytes(K), width = gemm.max_width();
    const int64_t count = divide_up(N, width);
    const int64_t stride = width * gemm.bytes(round_up(K, gemm.k_multiple));
    std::vector<char> encoded(rows * size), panels(count * stride);
    std::vector<float> c = before;
    auto a_rows = rows_of(encoded.data(), rows, size);
    const auto c_rows = rows_of(c.data(), rows, N);
    const auto b_rows =
        transposed ? rows_of<const void*>(b.data(), N, K) : rows_of<const void*>(b.data(), K, N);
    std::rotate(a_rows.begin(), a_rows.end() - std::min(moved, rows), a_rows.end());
    for (int64_t r = 0; r < rows; ++r) gemm.encode(&a[r * K], K, a_rows[r]);
    for (int64_t i = 0; i < count; ++i) {
      const PanelShape shape{i * width, std::min(width, N - i * width), gemm.max_vectors};
      gemm.pack({b_rows.data(), transposed}, 0, K, shape, &panels[i * stride]);
    }
    for (int64_t i = 0; i < count; i += gemm.panels_at_once) {
      const PanelShape shape{i * width, std::min(gemm.panels_at_once * width, N - i * width),
                             gemm.max_vectors};
      PanelProduct p{a_rows.data(), rows,          0,         K, &panels[i * stride],
                     shape,         c_rows.data(), accumulate};
      p.bias = adds_bias ? bias.data() : nullptr;
      p.panels = std::min(gemm.panels_at_once, count - i), p.panel_stride = stride;
      gemm.multiply(p);
    }
    gemm.end_thread();
    return c;
  }
  float first_term(int64_t r, int64_t n) const {
    return accumulate ? before[r * N + n] : adds_bias ? bias[n] : 0;
  }
  // Checks element [r,n] of a result. In a term, a factor is rounded to the sum of two bfloat16
  // numbers, with an error of 2^-17, and the product of the two lower numbers is left out.
  void check_sum(float found, int64_t r, int64_t n, double term_error = 0x1p-15) const {
    double sum = first_term(r, n), magnitude = std::fabs(sum) + 1e-30;
    for (int64_t k = 0; k < K; ++k) {
      const double term = double(a[r * K + k]) * weight(k, n);
      sum += term, magnitude += std::fabs(term);
    }
    check(std::fabs(found - sum) <= (term_error + 0x1p-24 * (2 + std::sqrt(double(K)))) * magnitude,
          rows, " rows, ", K, " terms, row ", r, ", column ", n, ": ", found, ", expected ", sum);
  }
};

void check_sums(const GemmKernels& gemm, unsigned seed) {
  const Problem p(seed);
  const int64_t size = gemm.encoded_bytes(p.K);
  check(size % 256 == 128 && size < 4 * p.K + 256, "not an odd number of blocks: ", size);
  const auto c = p.run(gemm);
  for (int64_t r = 0; r < p.rows; ++r)
    for (int64_t n = 0; n < p.N; ++n) p.check_sum(c[r * p.N + n], r, n);
}

bool same(const std::vector<float>& x, const std::vector<float>& y, int64_t count) {
  return std::memcmp(x.data(), y.data(), count * sizeof(float)) == 0;
}

// Checks that the bits of a row do not depend on the number of rows and on their order in memory.
void check_fewer_rows(const GemmKernels& gemm, unsigned seed) {
  Problem p(seed);
  const auto all = p.run(gemm);
  p.moved = 0;
  for (const int64_t rows : {int64_t(1), (p.rows + 1) / 2, std::min<int64_t>(p.rows, 17)}) {
    Problem few = p;
    few.rows = rows;
    check(same(few.run(gemm), all, rows * p.N), "seed ", seed, ": ", rows, " of ", p.rows,
          " rows differ from the same rows in the whole product");
  }
}

// Checks that with infinities, NaN or overflow, results are infinite or NaN exactly where those of
// plain float32 are. If only one row of a has such a value, the other rows must not change.
void check_special(const GemmKernels& gemm, unsigned seed) {
  Problem p(seed);
  p.rows = p.rows < 2 ? 2 : p.rows, p.a = p.numbers(p.rows * p.K),
  p.before = p.numbers(p.rows * p.N);
  const auto without = p.run(gemm);
  const float special[] = {INFINITY, -INFINITY, NAN, FLT_MAX, -FLT_MAX};
  const int64_t row = p.random.between(0, p.rows - 1);
  p.a[row * p.K + p.random.between(0, p.K - 1)] = special[seed % 5];
  if (seed % 3 == 0) p.b[p.random.between(0, p.N * p.K - 1)] = special[seed / 3 % 5];
  const auto c = p.run(gemm);
  for (int64_t r = 0; r < p.rows; ++r)
    for (int64_t n = 0; n < p.N; ++n) {
      float sum = 0;
      for (int64_t k = 0; k < p.K; ++k) sum = std::fma(p.a[r * p.K + k], p.weight(k, n), sum);
      const float expected = sum + p.first_term(r, n), found = c[r * p.N + n];
      if (std::isfinite(expected))
        p.check_sum(found, r, n, 0x1p-14);  // FLT_MAX is truncated
      else
        check(std::isnan(expected) ? std::isnan(found) : found == expected, "seed ", seed, ", row ",
              r, ", column ", n, ": ", found, ", expected ", expected);
      if (r != row && seed % 3)
        check(found == without[r * p.N + n], "seed ", seed, ": row ", r, " changed");
    }
}

// Checks that if two terms of a sum overflow to opposite infinities, the sum is the first of them.
void check_overflow(const GemmKernels& gemm, unsigned seed) {
  Problem p(seed);
  p.K += 2;
  const int64_t first = p.random.between(0, p.K - 2), second = p.random.between(first + 1, p.K - 1);
  p.a.assign(p.rows * p.K, 0), p.b.assign(p.N * p.K, 3e38f);
  for (int64_t r = 0; r < p.rows; ++r)
    p.a[r * p.K + first] = r % 2 ? -2 : 2, p.a[r * p.K + second] = r % 2 ? 2 : -2;
  const auto c = p.run(gemm);
  for (int64_t i = 0; i < p.rows * p.N; ++i)
    check(c[i] == (i / p.N % 2 ? -INFINITY : INFINITY), "seed ", seed, ", row ", i / p.N, ": ",
          c[i]);
}

// Checks that transposing encodes each column of a in the same way as `encode` does.
void check_transposed(const GemmKernels& gemm, unsigned seed) {
  Problem p(seed);
  const int64_t begin = p.random.between(0, p.K - 1), end = p.random.between(begin + 1, p.K);
  const int64_t bytes = gemm.encoded_bytes(p.rows);
  const auto rows = rows_of<const void*>(p.a.data(), p.rows, p.K);
  std::vector<char> found((end - begin) * bytes), expected(bytes);
  gemm.transpose(rows.data(), p.rows, begin, end, found.data());
  for (int64_t column = begin; column < end; ++column) {
    std::vector<float> of_column;
    for (int64_t r = 0; r < p.rows; ++r) of_column.push_back(p.a[r * p.K + column]);
    gemm.encode(of_column.data(), p.rows, expected.data());
    // The row ends with padding that `encode` does not write.
    const int64_t written = gemm.bytes(round_up(p.rows, 32));
    check(std::memcmp(&found[(column - begin) * bytes], expected.data(), written) == 0, "seed ",
          seed, ": column ", column, " of [", begin, ", ", end, ")");
  }
}

void add_cases(const std::string& name, const GemmKernels& gemm) {
  const auto add = [&](const char* what, auto check) {
    add_random_case("split float32/" + name + "/" + what,
                    [&gemm, check](unsigned seed) { check(gemm, seed); });
  };
  add("products", check_sums);
  add("fewer rows", check_fewer_rows);
  add("special values", check_special);
  add("overflow", check_overflow);
  add("transposed", check_transposed);
}

const bool added = [] {
  if (testing::tables().back().target != std::string("avx512")) return false;
  static const AmxGemms emulated = amx_emulated::amx_gemms();
  add_cases("amx_emulated", emulated.bfloat16x2);
  if (!testing::has_amx()) return true;
  static const AmxGemms amx = amx::amx_gemms();
  add_cases("amx", amx.bfloat16x2);
  add_random_case("split float32/amx/same bits as emulated", [](unsigned seed) {
    const Problem p(seed);
    const auto expected = p.run(emulated.bfloat16x2);
    check(same(p.run(amx.bfloat16x2), expected, expected.size()), "seed ", seed,
          ": the bits differ from those of the emulated tiles");
  });
  return true;
}();

}  // namespace
#endif
