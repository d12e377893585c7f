// The product of one pass: a block's slice of W_hh in shared memory times the rows that the blocks
// exchange. Warp w computes partial sums over the w-th eighth of k, in whole chunks:
//
//   partial_sums[w][b][r] = sum over k of  slice[r][k] * row[b][k]
//
// r is one of the kRows rows of the slice, b one of the kRowTile batch rows of the pass. All sums
// have a fixed order. So the result of a row depends neither on the division of the work nor on
// the other rows.
//
// The terms of a chunk are ordered so that the four words that a lane loads are its B operands of
// two mma instructions, without a shuffle. The slice has the same order (SliceLayout::source_of). A
// pass reads the slice from shared memory once, and this read bounds the product.
#pragma once
#include "persistent_exchange.h"

namespace fastlstm {

// A kind of arithmetic multiplies a tile a of 16 rows of the slice by a tile b of 8 batch rows.
//   FragmentA, FragmentB  what a lane holds of a and of b
//   operand()     converts a word of memory, which has two 16-bit values or a float
//   fragment_b()  makes a FragmentB of the two words of b that the lane has loaded
//   mma()         computes d += a b. A lane has four elements of d, as in the mma instruction
template <typename Value, void (*kMma)(float (&)[4], const Bits128&, uint32_t, uint32_t)>
struct TensorCores {
  using T = Value;
  using FragmentA = Bits128;
  using FragmentB = Bits64;
  static __device__ uint32_t operand(uint32_t word) { return word; }
  static __device__ FragmentB fragment_b(uint32_t low, uint32_t high) { return {low, high}; }
  static __device__ void mma(float (&d)[4], const FragmentA& a, const FragmentB& b) {
    kMma(d, a, b.low, b.high);
  }
};
struct BFloat16Mma : TensorCores<bfloat16, mma_bfloat16> {};
struct Float16Mma : TensorCores<float16, mma_float16> {};
struct Tf32Mma : TensorCores<float, mma_tf32> {
  static __device__ uint32_t operand(uint32_t word) { return to_tf32(bits_as<float>(word)); }
};

// IEEE float32 without tensor cores. A lane computes the same four elements of d as in the mma
// instruction: two rows of a, which the lane reads from shared memory (SliceLayout), times columns
// 2q (`even`) and 2q + 1 (`odd`) of b, with q = lane % 4. Shuffles gather the eight values of a
// column, which four lanes have loaded.
struct Ffma {
  using T = float;
  struct FragmentA {
    Bits128 quarter[4];  // the words of each quarter of the chunk
  };
  struct FragmentB {
    float even[8], odd[8];
  };
  static __device__ uint32_t operand(uint32_t word) { return word; }
  static __device__ FragmentB fragment_b(uint32_t low, uint32_t high) {
    const int first = threadIdx.x % 4 * 8;
    FragmentB all;
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      all.even[k] = bits_as<float>(shuffle(k < 4 ? low : high, first + k % 4));
      all.odd[k] = bits_as<float>(shuffle(k < 4 ? low : high, first + 4 + k % 4));
    }
    return all;
  }
  static __device__ void mma(float (&d)[4], const FragmentA& a, const FragmentB& b) {
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      const uint32_t* const words = a.quarter[k % 4].word + k / 4 * 2;
      const float upper = bits_as<float>(words[0]), lower = bits_as<float>(words[1]);
      d[0] = fused(upper, b.even[k], d[0]), d[1] = fused(upper, b.odd[k], d[1]);
      d[2] = fused(lower, b.even[k], d[2]), d[3] = fused(lower, b.odd[k], d[3]);
    }
  }
};

// The layout of the slice in shared memory: [tile of 16 rows][chunk][k step][lane][register]. A k
// step is one of the two mma instructions of a chunk. The registers of a lane are neighbors, so one
// load reads a fragment. A tile of 8 rows has no registers for rows 8 to 15.
//
// With Ffma, [4 quarters of a chunk][8 rows] replaces [32 lanes]. A lane reads all quarters of its
// row. In each load four lanes read the same fragment, and the warp eight neighboring fragments.
template <class P, int kRows>
struct SliceLayout {
  static constexpr int kHalves = std::min(kRows, 16) / 8;  // of a tile: 2, or 1 if it has 8 rows
  static constexpr int kRegisters = 2 * kHalves;
  static constexpr bool kBroadcastFragments = std::is_same<P, Ffma>::value;

  // Finds what the i-th word in shared memory holds: word `word` of row `row` of the slice.
  static __device__ void source_of(int i, int chunks, int& row, int& word) {
    const int r = i % kRegisters, lane = i / kRegisters % 32, k_step = i / (kRegisters * 32) % 2;
    const int chunk = i / (kRegisters * 64) % chunks, tile = i / (kRegisters * 64) / chunks;
    row = 16 * tile + (kBroadcastFragments ? lane % 8 : lane / 4) + 8 * (r % kHalves);
    word = 16 * chunk + 4 * (kBroadcastFragments ? lane / 8 : lane % 4) + 2 * k_step + r / kHalves;
  }

  static __device__ Bits128 load_fragment(const uint32_t* slice, int index) {
    if constexpr (kHalves == 2) return reinterpret_cast<const Bits128*>(slice)[index];
    const auto [low, high] = reinterpret_cast<const Bits64*>(slice)[index];
    return {{low, low, high, high}};  // nobody reads the sums of rows 8 to 15
  }

  static __device__ typename P::FragmentA load(const uint32_t* slice, int chunks, int tile,
                                               int chunk, int k_step, int lane) {
    const int first = ((tile * chunks + chunk) * 2 + k_step) * 32;
    if constexpr (kBroadcastFragments) {
      typename P::FragmentA a;
#pragma unroll
      for (int q = 0; q < 4; ++q) a.quarter[q] = load_fragment(slice, first + 8 * q + lane / 4);
      return a;
    } else {
      return load_fragment(slice, first + lane);
    }
  }
};

// Fills the slice with element(row, k), which must return 0 outside of the matrix.
template <class P, int kRows, typename Element>
__device__ void load_slice(uint32_t* slice, int chunks, const Element& element) {
  const int count = kRows * chunks * 16;
#if !defined(FASTLSTM_EMULATOR)
#pragma unroll 8
#endif
  for (int i = threadIdx.x; i < count; i += kThreads) {
    int row, word;
    SliceLayout<P, kRows>::source_of(i, chunks, row, word);
    if constexpr (sizeof(typename P::T) == 4)
      slice[i] = P::operand(bits_as<uint32_t>(element(row, word)));
    else
      slice[i] = bits_as<uint16_t>(element(row, 2 * word)) |
                 uint32_t(bits_as<uint16_t>(element(row, 2 * word + 1))) << 16;
  }
}

// The distance in floats between the partial sums of two batch rows.
constexpr __host__ __device__ int partial_stride(int rows) { return rows + kPartialPadding; }

// The product of a warp. The accumulators are tiles of 16 rows of the slice (M) and 8 batch rows
// (N): lane 4 g + q has rows g and g + 8 and columns 2 q and 2 q + 1 of each tile.
template <class P, int kRows, int kRowTile>
struct WarpProduct {
  using Layout = SliceLayout<P, kRows>;
  static constexpr int kMTiles = kRows / (8 * Layout::kHalves), kNTiles = kRowTile / 8;

  const uint32_t* slice;
  int chunks, lane;
  float tile[kMTiles][kNTiles][4] = {};

  // Multiplies the loaded chunks from `begin` on that lie before chunk `end`. words[i][j] is the
  // lane's piece of chunk begin + i, of batch row 8 j + lane / 4 of the pass.
  template <int kChunks>
  __device__ void add(const Bits128 (&words)[kChunks][kNTiles], int begin, int end) {
#pragma unroll
    for (int i = 0; i < kChunks; ++i) {
      if (begin + i >= end) break;
#pragma unroll
      for (int k_step = 0; k_step < 2; ++k_step) {
        typename P::FragmentB b[kNTiles];
#pragma unroll
        for (int j = 0; j < kNTiles; ++j)
          b[j] = P::fragment_b(P::operand(words[i][j].word[2 * k_step]),
                               P::operand(words[i][j].word[2 * k_step + 1]));
#pragma unroll
        for (int m = 0; m < kMTiles; ++m) {
          const auto a = Layout::load(slice, chunks, m, begin + i, k_step, lane);
#pragma unroll
          for (int j = 0; j < kNTiles; ++j) P::mma(tile[m][j], a, b[j]);
        }
      }
    }
  }

  __device__ void store(float* partial_sums) const {
    constexpr int stride = partial_stride(kRows);
    const int g = lane / 4, q = lane % 4;
#pragma unroll
    for (int m = 0; m < kMTiles; ++m) {
#pragma unroll
      for (int j = 0; j < kNTiles; ++j) {
        float* column = partial_sums + (8 * j + 2 * q) * stride + 16 * m + g;
        column[0] = tile[m][j][0], column[stride] = tile[m][j][1];
        if (Layout::kHalves == 2) column[8] = tile[m][j][2], column[stride + 8] = tile[m][j][3];
      }
    }
  }
};

// Multiplies the chunks [first, end) of a warp, and loads the next kChunks meanwhile.
template <int kChunks, class Product, typename T, int kNTiles>
__device__ void add_chunks(Product& product, const LanePieces<T> (&lane_pieces)[kNTiles], int first,
                           int end, uint32_t wait_limit) {
  LoadedChunks<T, kChunks, kNTiles> buffer, other_buffer;
  const auto multiply = [&](auto& loaded, auto& next, int begin) {
    const int next_begin = begin + kChunks;
    if (next_begin < end) next.load(lane_pieces, next_begin);
    product.add(loaded.words, begin, end);
    if (next_begin < end) next.wait(lane_pieces, next_begin, wait_limit);
  };
  buffer.load(lane_pieces, first);
  buffer.wait(lane_pieces, first, wait_limit);
  for (int begin = first; begin < end; begin += 2 * kChunks) {
    multiply(buffer, other_buffer, begin);
    if (begin + kChunks < end) multiply(other_buffer, buffer, begin + kChunks);
  }
}

}  // namespace fastlstm
