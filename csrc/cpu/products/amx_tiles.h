// The micro-kernels for AMX tiles. Included by targets/amx.cpp after struct Amx.
//
// A tile is a register of 16 rows of 64 bytes. A block of terms is 64 bytes of a row: 32 terms of
// bfloat16, or 64 terms of int8. A tile of A holds a block of terms of 16 rows, and a tile of B
// holds a block of terms of 16 columns of a panel. Two tiles of A are multiplied by two tiles of B,
// so each loaded tile serves two products. If the rows fill only one tile, it is multiplied by four
// tiles of B, because fewer than four independent sums would wait for each other. Loading tiles
// from the L1 and L2 caches bounds these kernels.
#pragma once
#include "cpu/products/packing.h"

namespace fastlstm::FASTLSTM_ISA {

constexpr int64_t kTileRows = 16, kLineBytes = 64, kMaxRows = 2 * kTileRows;
constexpr int64_t kPairWidth = 32;  // the columns of two tiles of B
static_assert(Vec<float>::lanes == kTileRows);

// Returns the bytes from one row to the next, or -1 if the rows do not lie at one positive stride.
FASTLSTM_INLINE int64_t stride_of(const auto* rows, int64_t count) {
  const auto row = [&](int64_t r) { return static_cast<const char*>(rows[r]); };
  const int64_t stride = count > 1 ? row(1) - row(0) : 0;
  bool at_one_stride = stride >= 0;
  for (int64_t r = 2; r < count; ++r) at_one_stride &= row(r) - row(r - 1) == stride;
  return at_one_stride ? stride : -1;
}

// At most 32 rows of A, as tiles load them, block by block. A block of a row has kPlanes times 64
// bytes: two planes for float32 (split_float32.h), else one. Tiles load rows directly if all rows
// lie at one stride. Otherwise, as in the first step and after a reset, a block of all rows is
// copied to a buffer first. The last block is padded with zeros.
template <int kPlanes>
class TileRows {
 public:
  // A product multiplies bytes [begin, begin + bytes) of each row.
  FASTLSTM_INLINE TileRows(const PanelProduct& p, int64_t begin, int64_t bytes)
      : rows_(p.a), count_(p.rows), begin_(begin), whole_(bytes / kBytes), rest_(bytes % kBytes) {
    for (int64_t r = 0; r < count_ && rest_; ++r)
      _mm512_store_si512(
          last_[r], _mm512_maskz_loadu_epi8((uint64_t(1) << rest_) - 1, row(r) + whole_ * kBytes));
  }
  int64_t count() const { return count_; }
  int64_t blocks() const { return whole_ + (rest_ > 0); }
  const char* row(int64_t r) const { return static_cast<const char*>(rows_[r]) + begin_; }

  // One block of terms of all rows: its address in the first row, and the bytes between rows.
  struct Block {
    const char* first;
    int64_t stride;
  };
  FASTLSTM_INLINE Block block(int64_t k) {
    if (k == whole_) return {last_[0], kLineBytes};
    if (stride_ >= 0) return {row(0) + k * kBytes, stride_};
    for (int64_t r = 0; r < count_; ++r) std::memcpy(gathered_[r], row(r) + k * kBytes, kBytes);
    return {gathered_[0], kBytes};
  }

 private:
  static constexpr int64_t kBytes = kPlanes * kLineBytes;
  const void* const* rows_;
  int64_t count_, begin_, whole_, rest_;  // whole_ blocks, then a block of rest_ bytes
  const int64_t stride_ = stride_of(rows_, count_);
  alignas(64) char gathered_[kMaxRows][kBytes], last_[kMaxRows][kLineBytes];
};

// Where the tiles of B are in panels: an address, then distances in bytes.
struct PanelTiles {
  const char* first;  // the first tile
  int64_t block,      // to the same tile of the next block of terms
      plane,          // to the same tile of the next plane
      pair,           // to the next pair of neighboring tiles (32 columns)
      second,         // from the first to the second tile of a pair
      stride;         // from one row of a tile to the next
};

// Where tiles store their sums, rows of `stride` bytes, and the bias [columns] with which the sums
// begin, or nullptr for zeros.
struct TileSums {
  char* first;
  int64_t stride;
  const char* bias;

  FASTLSTM_INLINE void skip(int64_t bytes) { first += bytes, bias += bias ? bytes : 0; }
  template <int t>
  FASTLSTM_INLINE void begin(int64_t byte) const {
    bias ? Amx::load<t>(bias + byte, 0) : Amx::zero<t>();
  }
  template <int t>
  FASTLSTM_INLINE void store(int64_t row, int64_t byte) const {
    Amx::store<t>(first + row * stride + byte, stride);
  }
};

// Calls body(plane of A, plane of B) for each computed product of planes, the largest values last.
template <int kPlanes, typename Body>
FASTLSTM_INLINE void for_each_product(const Body& body) {
  if constexpr (kPlanes == 2) body(Int<0>(), Int<1>()), body(Int<1>(), Int<0>());
  body(Int<0>(), Int<0>());
}

// Multiplies two tiles of A by a pair of tiles of B. Tiles 0 to 3 hold the sums, 4 and 5 hold A, 6
// and 7 hold B. If there is a single row, tile 5 has no use, and nobody reads its sums.
template <typename T, int kPlanes>
static void multiply_pair(TileRows<kPlanes>& a, PanelTiles b, const TileSums& sums) {
  const int64_t rows = a.count(), upper_rows = (rows + 1) / 2, lower_rows = rows / 2 + (rows == 1);
  Amx::configure({upper_rows, upper_rows, lower_rows, lower_rows, upper_rows, lower_rows, 16, 16});
  const int64_t second = b.second ? kLineBytes : 0;
  sums.begin<0>(0), sums.begin<1>(second), sums.begin<2>(0), sums.begin<3>(second);
  for (int64_t k = 0; k < a.blocks(); ++k, b.first += b.block) {
    const auto block_of_a = a.block(k);
    int loaded_a = -1, loaded_b = -1;
    for_each_product<kPlanes>([&](auto plane_of_a, auto plane_of_b) {
      constexpr int i = decltype(plane_of_a)::value, j = decltype(plane_of_b)::value;
      if (loaded_a != i) {
        Amx::load<4>(block_of_a.first + i * kLineBytes, block_of_a.stride);
        Amx::load<5>(block_of_a.first + i * kLineBytes + upper_rows * block_of_a.stride,
                     block_of_a.stride);
      }
      if (loaded_b != j) {
        Amx::load<6>(b.first + j * b.plane, b.stride);
        Amx::load<7>(b.first + j * b.plane + b.second, b.stride);
      }
      loaded_a = i, loaded_b = j;
      Amx::multiply_add<T, 0, 4, 6>(), Amx::multiply_add<T, 1, 4, 7>();
      Amx::multiply_add<T, 2, 5, 6>(), Amx::multiply_add<T, 3, 5, 7>();
    });
  }
  sums.store<0>(0, 0), sums.store<1>(0, kLineBytes);
  sums.store<2>(upper_rows, 0), sums.store<3>(upper_rows, kLineBytes);
}

// Multiplies a tile of A (tile 4) by two pairs of tiles of B (tiles 5, 6, 7, and 5 again).
template <typename T, int kPlanes>
static void multiply_two_pairs(TileRows<kPlanes>& a, PanelTiles b, const TileSums& sums) {
  const int64_t rows = a.count();
  Amx::configure({rows, rows, rows, rows, rows, 16, 16, 16});
  sums.begin<0>(0), sums.begin<1>(kLineBytes);
  sums.begin<2>(2 * kLineBytes), sums.begin<3>(3 * kLineBytes);
  for (int64_t k = 0; k < a.blocks(); ++k, b.first += b.block) {
    const auto block_of_a = a.block(k);
    int loaded_a = -1;
    for_each_product<kPlanes>([&](auto plane_of_a, auto plane_of_b) {
      constexpr int i = decltype(plane_of_a)::value, j = decltype(plane_of_b)::value;
      if (loaded_a != i) Amx::load<4>(block_of_a.first + i * kLineBytes, block_of_a.stride);
      loaded_a = i;
      const char* const tile = b.first + j * b.plane;
      Amx::load<5>(tile, b.stride), Amx::load<6>(tile + b.second, b.stride);
      Amx::multiply_add<T, 0, 4, 5>(), Amx::multiply_add<T, 1, 4, 6>();
      Amx::load<7>(tile + b.pair, b.stride), Amx::load<5>(tile + b.pair + b.second, b.stride);
      Amx::multiply_add<T, 2, 4, 7>(), Amx::multiply_add<T, 3, 4, 5>();
    });
  }
  sums.store<0>(0, 0), sums.store<1>(0, kLineBytes);
  sums.store<2>(0, 2 * kLineBytes), sums.store<3>(0, 3 * kLineBytes);
}

// Multiplies the rows of a product, at most 32 at a time, by all its columns, at most 64. For each
// part of the rows it calls put(TileRows of the part, PanelProduct of the part, sums [rows,width]).
// Sums of bfloat16 with one plane begin with the bias if the last vector of columns is whole, and
// they are stored in c, without put, if whole tiles fit there and the rows of c lie at one stride.
template <typename T, int kPlanes, typename Put>
FASTLSTM_INLINE void multiply_on_tiles(const PanelProduct& p, int64_t begin, int64_t bytes,
                                       PanelTiles tiles, const Put& put) {
  const bool sums_are_results = sizeof(T) == 2 && kPlanes == 1 && !p.accumulate;
  const int64_t vectors = p.panels * p.shape.vectors, pairs = (vectors + 1) / 2;
  const int64_t width = pairs * kPairWidth, parts = (p.rows + kMaxRows - 1) / kMaxRows;
  const int64_t first_byte = p.shape.first_column * sizeof(float);
  for (int64_t i = 0; i < parts; ++i) {
    const int64_t first = p.rows * i / parts;
    PanelProduct part = p;
    part.a += first, part.c += first, part.rows = p.rows * (i + 1) / parts - first;
    TileRows<kPlanes> a(part, begin, bytes);
    alignas(64) char buffer[kMaxRows * 2 * kPairWidth * sizeof(float)];
    TileSums sums{buffer, width * int64_t(sizeof(float)), nullptr};
    const int64_t stride = stride_of(part.c, part.rows);
    const bool in_c = sums_are_results && stride > 0 && p.shape.columns == width && !p.c_is_16_bit;
    if (in_c) sums.first = static_cast<char*>(part.c[0]) + first_byte, sums.stride = stride;
    if (sums_are_results && p.bias && p.shape.columns == vectors * kTileRows)
      sums.bias = static_cast<const char*>(p.bias) + first_byte, part.bias = nullptr;
    PanelTiles b = tiles;
    for (int64_t pair = 0; pair < pairs;) {
      const int64_t count = part.rows <= kTileRows && 2 * pair + 4 <= vectors ? 2 : 1;
      if (2 * pair + 1 == vectors) b.second = 0;  // no second tile: reads the first twice
      if (count == 2)
        multiply_two_pairs<T>(a, b, sums);
      else
        multiply_pair<T>(a, b, sums);
      pair += count, b.first += count * b.pair, sums.skip(2 * count * kLineBytes);
    }
    if (!in_c) put(a, part, buffer, width);
  }
}

// Multiplies rows of bfloat16 or int8 by a panel that is packed for register tiles (tiles.h,
// int8_tiles.h). `header`: the bytes in front of the panel's elements.
template <typename T>
static void multiply_panel(const PanelProduct& p, int64_t begin, int64_t bytes, int64_t header,
                           decltype(GemmKernels::put_rows) put) {
  const int64_t row = p.shape.vectors * kLineBytes;
  const char* const first = static_cast<const char*>(p.panel) + header;
  multiply_on_tiles<T, 1>(p, begin, bytes,
                          {first, kTileRows * row, 0, 2 * kLineBytes, kLineBytes, row},
                          [&](auto&, const PanelProduct& part, const void* sums, int64_t width) {
                            put(part, sums, width);
                          });
}

}  // namespace fastlstm::FASTLSTM_ISA
