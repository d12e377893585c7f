// The micro-kernels for float, double and bfloat16: register tiles. Included once for each target.
//
// A register tile has R rows x V vectors of columns, and its accumulators stay in registers. For
// each k it loads V vectors of the panel and broadcasts R scalars. A tile of 6 x 4 makes 10 loads
// for 24 multiply-adds, so arithmetic bounds it. A tile of few rows takes two panels at a time,
// because multiply-adds have a latency, which only many independent sums hide. The order in which a
// sum adds its terms depends neither on R nor on V, so its bits do not depend on the other rows.
#pragma once
#include <cstddef>
#include <type_traits>

#include "cpu/products/gemm_kernels.h"
#include "cpu/vec.h"

#define FASTLSTM_STRING_(x) #x
#define FASTLSTM_STRING(x) FASTLSTM_STRING_(x)

namespace fastlstm::FASTLSTM_ISA {

// One step of a dot product. A lane of a panel holds terms_per_lane neighboring terms of a column:
// 1 here, and 2 for bfloat16.
template <typename T>
struct DotStep {
  static constexpr int terms_per_lane = 1;
  using V = Vec<State_t<T>>;

  // Broadcasts the next `count` terms of a row, at most terms_per_lane.
  template <int count>
  FASTLSTM_INLINE static V broadcast(const T* a) {
    if constexpr (sizeof(T) == 2) {
      const HalfRegister halves = HalfRegister{} + a->bits;
      return load_first(reinterpret_cast<const T*>(&halves), V::lanes);
    } else {
      return V(*a);
    }
  }
  FASTLSTM_INLINE static V multiply_add(const V& a, const V& b, const V& sum) {
    return fused(a, b, sum);
  }
  // Loads the first n elements of `from`. The other lanes are zero.
  FASTLSTM_INLINE static V load_first(const T* from, int64_t n) {
    V x;
    load(from, x, n);
    return x;
  }
};

// The next two functions handle pairs of bfloat16 with instructions for float32. A target that has
// an instruction for dot products of pairs declares overloads before it includes this file.

// Returns sum + the products of the first elements of the pairs + the products of the second ones.
template <typename A>
FASTLSTM_INLINE Vec<A> add_pairs(const Vec<A>& a, const Vec<A>& b, const Vec<A>& sum) {
  using Bits = typename Registers<A>::Bits;
  const auto as_vector = [](Bits bits) { return Vec<A>(bits_as<typename Vec<A>::Native>(bits)); };
  const auto first = [&](const Vec<A>& x) { return as_vector(bits_as<Bits>(x.v) << 16); };
  const auto second = [&](const Vec<A>& x) { return as_vector(bits_as<Bits>(x.v) & 0xffff0000u); };
  return fused(second(a), second(b), fused(first(a), first(b), sum));
}

// Loads the first n elements of a vector of pairs. The other elements are zero.
template <typename T>
FASTLSTM_INLINE Vec<float> load_pairs(const T* from, int64_t n) {
  T pairs[2 * Vec<float>::lanes] = {};
  copy_few(from, n, pairs);
  return Vec<float>::load(pairs);
}

template <>
struct DotStep<bfloat16> {
  static constexpr int terms_per_lane = 2;

  template <int count>
  FASTLSTM_INLINE static Vec<float> broadcast(const bfloat16* a) {
    const uint32_t pair = count == 2 ? read<uint32_t>(a) : a->bits;
    // Otherwise the compiler splits the pair and broadcasts its elements one by one.
    return keep_in_register(
        Vec<float>(bits_as<Vec<float>::Native>(Registers<float>::Bits{} + pair)));
  }
  FASTLSTM_INLINE static Vec<float> multiply_add(const Vec<float>& a, const Vec<float>& b,
                                                 const Vec<float>& sum) {
    return add_pairs(a, b, sum);
  }
  FASTLSTM_INLINE static Vec<float> load_first(const bfloat16* from, int64_t n) {
    return n == 2 * Vec<float>::lanes ? Vec<float>::load(from) : load_pairs(from, n);
  }
};

template <int N>
using Int = std::integral_constant<int, N>;

// Calls body(Int<count>()) for a `count` that is known only at run time, least <= count <= most.
template <int most, int least = 1, typename Body>
FASTLSTM_INLINE void with_count(int64_t count, const Body& body) {
  if (count == most)
    body(Int<most>());
  else if constexpr (most > least)
    with_count<most - 1, least>(count, body);
}

// Divides rows into tiles of at most `most` rows, as evenly as possible, and calls body(Int<R>(),
// first row) for each tile.
template <int most, typename Body>
FASTLSTM_INLINE void for_row_tiles(int64_t rows, const Body& body) {
  const int64_t tiles = (rows + most - 1) / most;
  for (int64_t i = 0, first = 0; i < tiles; ++i) {
    const int64_t count = rows / tiles + (i < rows % tiles);
    with_count<most>(count, [&](auto R) { body(R, first); });
    first += count;
  }
}

// The number of terms of a partial sum. A sum adds partial sums, so its rounding error grows with
// kTermsPerPartialSum + K / kTermsPerPartialSum instead of K.
constexpr int64_t kTermsPerPartialSum = 256;
// How far ahead a panel is prefetched, since it may be neither in the L1 nor in the L2 cache.
constexpr int64_t kPrefetchBytes = 2048;

// A register tile of R rows x V vectors. It reads V / W panels of W vectors each, and prefetches
// them into the L1 cache, or into the L2 cache if the matrix comes from memory.
template <int R, int V, int W, typename A, bool from_memory = false>
struct Tile {
  static constexpr int L = Vec<A>::lanes;
  int64_t panel_stride;  // elements from one panel to the next
  Vec<A> sum[R][V];
  int64_t term_stride = W * L;  // elements from one term of a panel to the next
  int64_t prefetch_bytes = kPrefetchBytes;

  // Adds K products to `sum`, which is zeros before. a[r] points to the first term of row r. During
  // the sums it calls prefetch->fetch(), unless `prefetch` is the constant nullptr.
  template <typename T, typename Fetch>
  FASTLSTM_INLINE void multiply(const T* const* a, int64_t K, const T* panel, Fetch prefetch) {
    A earlier[R][V * L];  // partial sums in memory: the registers have the next partial sum
    for (int64_t k = 0;; k += kTermsPerPartialSum) {
      const int64_t end = smaller(K, k + kTermsPerPartialSum);
      add(a, k, end, panel + k * W * L, prefetch);
      if (k > 0)
        for_each([&](int r, int v) { sum[r][v] = Vec<A>::load(earlier[r] + v * L) + sum[r][v]; });
      if (end == K) return;
      for_each([&](int r, int v) {
        sum[r][v].store(earlier[r] + v * L);
        sum[r][v] = Vec<A>(A(0));
      });
    }
  }

  // Adds the products of terms [k, end) to the sums. `panel` points to term k.
  template <typename T, typename Fetch>
  FASTLSTM_INLINE void add(const T* const* a, int64_t k, int64_t end, const T* panel,
                           Fetch prefetch) {
    if constexpr (!std::is_same_v<Fetch, std::nullptr_t>)
      for (; k + kTermsPerFetch < end; k += kTermsPerFetch) {
        prefetch->fetch();
        add(a, k, k + kTermsPerFetch, panel, nullptr);
        panel += kTermsPerFetch * W * L;
      }
    constexpr int P = DotStep<T>::terms_per_lane;
    for (; k + P <= end; k += P, panel += P * term_stride) add_terms<P>(a, k, panel);
    if (P > 1 && k < end) add_terms<1>(a, k, panel);
  }

  // Calls body(r, v) for each vector v of each row r.
  FASTLSTM_INLINE static void for_each(const auto& body) {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) body(r, v);
  }

 private:
  template <int count, typename T>
  FASTLSTM_INLINE void add_terms(const T* const* a, int64_t k, const T* panel) {
    Vec<A> b[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) {
      const T* const from = panel + v / W * panel_stride + v % W * L * DotStep<T>::terms_per_lane;
      // For one row, which reads the panel once, the hardware prefetcher is faster (Intel Xeon).
      if constexpr (R > 1 || from_memory)
        __builtin_prefetch(reinterpret_cast<const char*>(from) + prefetch_bytes, 0,
                           from_memory ? 2 : 3);
      b[v] = keep_in_register(Vec<A>::load(from));
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const Vec<A> x = DotStep<T>::template broadcast<count>(a[r] + k);
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) sum[r][v] = DotStep<T>::multiply_add(x, b[v], sum[r][v]);
    }
  }
};

// The epilogue: adds the old values of C or the bias to vector v of a row of sums, and writes it to
// the row of C. Only the last vector may be incomplete.
template <typename A, typename C>
FASTLSTM_INLINE void put_sums(const PanelProduct& p, const Vec<A>& sums, C* row, int64_t v) {
  const int64_t column = p.shape.first_column + v * Vec<A>::lanes;
  const int64_t n = smaller(p.shape.columns - v * Vec<A>::lanes, Vec<A>::lanes);
  Vec<A> before(A(0));
  if (p.accumulate)
    load(row + column, before, n);
  else if (p.bias)
    load(static_cast<const A*>(p.bias) + column, before, n);
  store(before + sums, row + column, n);
}

// GemmFunctions::put_rows.
template <typename A, typename C>
static void put_rows(const PanelProduct& p, const void* sums, int64_t stride) {
  for (int64_t r = 0; r < p.rows; ++r) {
    const A* const row = static_cast<const A*>(sums) + r * stride;
    for (int64_t v = 0; v * Vec<A>::lanes < p.shape.columns; ++v)
      put_sums<A, C>(p, Vec<A>::load(row + v * Vec<A>::lanes), static_cast<C*>(p.c[r]), v);
  }
}

// The epilogue of a tile whose first row is `first`, and whose first column is column `column` of
// the panels. c: the R rows of C from there on. Whole vectors have a short way, since with few
// terms the epilogue takes a tenth of the time.
template <int R, int V, int W, typename A, typename C>
FASTLSTM_INLINE void put_tile(const PanelProduct& p, const Tile<R, V, W, A>& tile, C* const* c,
                              int64_t first, int64_t column) {
  constexpr int L = Vec<A>::lanes;
  const int64_t first_column = p.shape.first_column + column;
  const int64_t columns = smaller(p.shape.columns - column, V * L);
  if constexpr (std::is_same_v<A, C>) {
    const auto put = [&](const auto& before) {
      tile.for_each(
          [&](int r, int v) { (before(c[r] + v * L, v) + tile.sum[r][v]).store(c[r] + v * L); });
    };
    if (columns == V * L && p.accumulate)
      return put([](const A* old, int) { return Vec<A>::load(old); });
    if (columns == V * L && p.bias)
      return put([bias = static_cast<const A*>(p.bias) + first_column](const A*, int v) {
        return Vec<A>::load(bias + v * L);
      });
    if (columns == V * L) return put([](const A*, int) { return Vec<A>(A(0)); });
  }
  A sums[R][V * L];
  tile.for_each([&](int r, int v) { tile.sum[r][v].store(sums[r] + v * L); });
  PanelProduct part = p;
  part.c += first, part.rows = R, part.shape = {first_column, columns, V};
  put_rows<A, C>(part, sums, V * L);
}

// Multiplies the rows [first, first + R) by V / W panels of W vectors.
template <typename T, typename A, typename C, typename Fetch, int R, int V, int W>
static void multiply_tile(const PanelProduct& p, Fetch prefetch, Int<R>, Int<V>, Int<W>,
                          int64_t first, int64_t panel) {
  constexpr int L = Vec<A>::lanes;
  const int64_t column = panel * W * L;
  Tile<R, V, W, A> tile{p.panel_stride / int64_t(sizeof(T)), {}};
  const T* a[R];
  C* c[R];
  for (int r = 0; r < R; ++r) {
    a[r] = static_cast<const T*>(p.a[first + r]) + p.k_begin;
    c[r] = static_cast<C*>(p.c[first + r]) + p.shape.first_column + column;
  }
  if (p.accumulate) tile.for_each([&](int r, int v) { __builtin_prefetch(c[r] + v * L); });
  tile.multiply(a, p.K, static_cast<const T*>(p.panel) + panel * tile.panel_stride, prefetch);
  put_tile(p, tile, c, first, column);
}

// Calls tile(Int<r>(), Int<v>(), Int<W>(), first row, first panel) for each tile of a product. A
// tile has r rows x v vectors, and a panel has W vectors, narrowest <= W <= V. A tile has at most R
// rows and one panel (v = W), or few rows and two panels (v = 2 W).
template <int R, int V, int narrowest = 1, typename Body>
FASTLSTM_INLINE void for_tiles(const PanelProduct& p, const Body& tile) {
  constexpr int kMaxSumsOfTwoPanels = 8;
  with_count<V, narrowest>(p.shape.vectors, [&](auto width) {
    constexpr int W = decltype(width)::value;
    for_row_tiles<R>(p.rows, [&](auto rows, int64_t first) {
      int64_t done = 0;
      const auto panel = [&](int64_t count) {
        return p.backwards ? p.panels - count - done : done;
      };
      if constexpr (decltype(rows)::value * 2 * W <= kMaxSumsOfTwoPanels)
        for (; done + 2 <= p.panels; done += 2) tile(rows, Int<2 * W>(), width, first, panel(2));
      for (; done < p.panels; ++done) tile(rows, width, width, first, panel(1));
    });
  });
}

template <int R, int V, typename T, typename A, typename C, int narrowest = 1, typename Fetch>
FASTLSTM_INLINE void multiply_tiles(const PanelProduct& p, Fetch prefetch) {
  for_tiles<R, V, narrowest>(p,
                             [&](auto... tile) { multiply_tile<T, A, C>(p, prefetch, tile...); });
}

// With so few terms, a register tile takes longer to begin and to end than to add its terms.
constexpr int kFewTerms = 3;

// Multiplies the rows [first, first + R) by all panels of K terms. A row is written from its first
// column to its last one, since writing c takes the time. The sums have the bits of a tile. `p` is
// a copy, so that the compiler knows that writing c does not change it.
template <typename A, int K, int R>
static void multiply_few_terms(PanelProduct p, Int<K>, Int<R>, int64_t first) {
  constexpr int L = Vec<A>::lanes;
  Vec<A> x[R][K];
  A* c[R];
  for (int r = 0; r < R; ++r) {
    c[r] = static_cast<A*>(p.c[first + r]);
    for (int k = 0; k < K; ++k)
      x[r][k] = Vec<A>(static_cast<const A*>(p.a[first + r])[p.k_begin + k]);
  }
  const char* panel = static_cast<const char*>(p.panel);
  for (int64_t vector = 0; vector * L < p.shape.columns; panel += p.panel_stride)
    for (int64_t v = 0; v < p.shape.vectors; ++v, ++vector) {
      Vec<A> b[K];
      for (int k = 0; k < K; ++k)
        b[k] = Vec<A>::load(reinterpret_cast<const A*>(panel) + (k * p.shape.vectors + v) * L);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        Vec<A> sum(A(0));
#pragma GCC unroll 4
        for (int k = 0; k < K; ++k) sum = fused(x[r][k], b[k], sum);
        put_sums(p, sum, c[r], vector);
      }
    }
}

// GemmFunctions::multiply. Narrow panels of double ignore the prefetch, so that less is compiled.
template <int R, int V, typename T, typename A, bool trains>
static void multiply(const PanelProduct& p) {
  if constexpr (trains && sizeof(T) == sizeof(A))
    if (p.K > 0 && p.K <= kFewTerms)
      return with_count<kFewTerms>(p.K, [&](auto terms) {
        for_row_tiles<8 / decltype(terms)::value>(p.rows, [&](auto rows, int64_t first) {
          multiply_few_terms<A>(p, terms, rows, first);
        });
      });
  if constexpr (trains) {
    constexpr int narrowest = sizeof(T) == 8 ? V : 1;
    if constexpr (sizeof(T) < sizeof(A))
      if (p.c_is_16_bit) return multiply_tiles<R, V, T, A, T>(p, nullptr);
    if (p.prefetch && p.shape.vectors >= narrowest)
      return multiply_tiles<R, V, T, A, A, narrowest>(p, p.prefetch);
  }
  multiply_tiles<R, V, T, A, A>(p, nullptr);
}

}  // namespace fastlstm::FASTLSTM_ISA
