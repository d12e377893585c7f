// The product of a step: a block's slice of W_hh in shared memory, and a warp's sums of that slice
// with rows that other blocks publish.
//
//   partial[w][b][r] = sum over the w-th eighth of k of  slice[r][k] * row[b][k]
//
// r counts the block's kRows matrix rows, b the kTile batch rows of a pass, w the warps. K is
// always split 8 ways in whole chunks and summed in the same order, so the result of a row depends
// neither on the division of the work nor on the other rows.
//
// The four words that a lane has of a chunk are the B operands of two mma steps without any
// shuffling, because the order of k within a chunk is free as long as the slice is stored in the
// same one (Fragments::place). One pass reads the whole slice from shared memory, which bounds it.
#pragma once
#include "persistent_exchange.h"

namespace fastlstm {

// The kinds of arithmetic. operand(): a word of memory (two 16-bit values or a float) as the
// multiplication takes it.

template <typename Value>
struct AsStored {
  using T = Value;
  static __device__ uint32_t operand(uint32_t word) { return word; }
};

struct BFloat16Mma : AsStored<bfloat16> {
  static __device__ void mma(float (&d)[4], const Bits128& a, uint32_t b0, uint32_t b1) {
    mma_bfloat16(d, a, b0, b1);
  }
};

struct Float16Mma : AsStored<float16> {
  static __device__ void mma(float (&d)[4], const Bits128& a, uint32_t b0, uint32_t b1) {
    mma_float16(d, a, b0, b1);
  }
};

struct Tf32Mma {
  using T = float;
  static __device__ uint32_t operand(uint32_t word) { return to_tf32(bits_as<float>(word)); }
  static __device__ void mma(float (&d)[4], const Bits128& a, uint32_t b0, uint32_t b1) {
    mma_tf32(d, a, b0, b1);
  }
};

// IEEE float32 without tensor cores. WarpProduct has a layout of its own for it; mma() is the tile
// of mma_tf32, whose factors lanes hand each other.
struct Ffma : AsStored<float> {
  static __device__ void mma(float (&d)[4], const Bits128& a, uint32_t b0, uint32_t b1) {
    const int lane = threadIdx.x % 32, row = lane / 4 * 4, column = lane % 4 * 8;
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      const auto factor = [&](uint32_t word, int first) {
        return bits_as<float>(shuffle(word, first + k % 4));
      };
      const uint32_t b = k < 4 ? b0 : b1;
      const float upper = factor(a.word[k / 4 * 2], row);
      const float lower = factor(a.word[k / 4 * 2 + 1], row);
      const float even = factor(b, column), odd = factor(b, column + 4);
      d[0] = fused(upper, even, d[0]), d[1] = fused(upper, odd, d[1]);
      d[2] = fused(lower, even, d[2]), d[3] = fused(lower, odd, d[3]);
    }
  }
};

// Where the words of the slice lie. mma: [row tile][chunk][step 0, 1][lane][register], so that a
// lane reads a fragment at once; a tile of only 8 rows leaves out the registers of the others.
// FFMA: [word][row], so that lanes read neighboring rows.
template <class P, int kRows>
struct Fragments {
  static constexpr int kRegisters = kRows == 8 ? 2 : 4;
  static constexpr int kTiles = kRows == 8 ? 1 : kRows / 16;
  struct alignas(8) Pair {
    uint32_t low, high;
  };

  // Row and K word of the i-th stored word.
  static __device__ void place(int i, int chunks, int& row, int& word) {
    const int r = i % kRegisters, lane = i / kRegisters % 32, step = i / (kRegisters * 32) % 2;
    const int chunk = i / (kRegisters * 64) % chunks, tile = i / (kRegisters * 64) / chunks;
    const bool lower_rows = kRegisters == 4 && r % 2 == 1;
    const int high = kRegisters == 4 ? r / 2 : r;
    row = 16 * tile + lane / 4 + 8 * lower_rows;
    word = 16 * chunk + 4 * (lane % 4) + 2 * step + high;
  }

  static __device__ Bits128 load(const uint32_t* slice, int chunks, int tile, int chunk, int step,
                                 int lane) {
    const int i = (((tile * chunks + chunk) * 2 + step) * 32 + lane) * kRegisters;
    if constexpr (kRegisters == 4) return *reinterpret_cast<const Bits128*>(slice + i);
    const auto [low, high] = *reinterpret_cast<const Pair*>(slice + i);
    return {{low, 0, high, 0}};
  }
};

template <int kRows>
struct Fragments<Ffma, kRows> {
  static __device__ void place(int i, int, int& row, int& word) {
    row = i % kRows;
    word = i / kRows;
  }
};

// Fills the slice; element(row, k) is its value, or 0 beyond the matrix.
template <class P, int kRows, typename Element>
__device__ void load_slice(uint32_t* slice, int chunks, const Element& element) {
  const int count = kRows * chunks * 16;
#if !defined(FASTLSTM_EMULATOR)
#pragma unroll 8
#endif
  for (int i = threadIdx.x; i < count; i += kThreads) {
    int row, word;
    Fragments<P, kRows>::place(i, chunks, row, word);
    if constexpr (sizeof(typename P::T) == 4)
      slice[i] = P::operand(bits_as<uint32_t>(element(row, word)));
    else
      slice[i] = pack(bits_as<uint16_t>(element(row, 2 * word)),
                      bits_as<uint16_t>(element(row, 2 * word + 1)));
  }
}

constexpr __host__ __device__ int partial_stride(int rows) { return rows + kPartialPadding; }

// The sums of a warp. add() takes loaded chunks from `begin` on, up to chunk `last`; a lane has the
// batch rows 8 j + lane / 4 of the pass.
template <class P, int kRows, int kTile>
struct WarpProduct {
  using F = Fragments<P, kRows>;
  static constexpr int kColumns = kTile / 8;

  const uint32_t* slice;
  int chunks, lane;
  float* stage;  // of FFMA
  float sum[F::kTiles][kColumns][4] = {};

  template <int kChunks>
  __device__ void add(const Bits128 (&words)[kChunks][kColumns], int begin, int last) {
#pragma unroll
    for (int a = 0; a < kChunks; ++a) {
      if (begin + a >= last) break;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        uint32_t b[kColumns][2];
#pragma unroll
        for (int j = 0; j < kColumns; ++j) {
          b[j][0] = P::operand(words[a][j].word[2 * half]);
          b[j][1] = P::operand(words[a][j].word[2 * half + 1]);
        }
#pragma unroll
        for (int m = 0; m < F::kTiles; ++m) {
          const Bits128 weights = F::load(slice, chunks, m, begin + a, half, lane);
#pragma unroll
          for (int j = 0; j < kColumns; ++j) P::mma(sum[m][j], weights, b[j][0], b[j][1]);
        }
      }
    }
  }

  __device__ void store_sums(float* partial) const {
    constexpr int stride = partial_stride(kRows);
    const int g = lane / 4, q = lane % 4;
#pragma unroll
    for (int m = 0; m < F::kTiles; ++m) {
#pragma unroll
      for (int j = 0; j < kColumns; ++j) {
        float* column = partial + (8 * j + 2 * q) * stride + 16 * m + g;
        column[0] = sum[m][j][0];
        column[stride] = sum[m][j][1];
        if (kRows == 8) continue;
        column[8] = sum[m][j][2];
        column[stride + 8] = sum[m][j][3];
      }
    }
  }
};

// Sums over all warps, which left theirs in partials [kWarps][tile][partial_stride(rows)]: of batch
// row b the matrix rows r .. r + kCount - 1.
template <int kCount>
struct alignas(4 * kCount) Sums {
  float value[kCount];
};
template <int kCount>
__device__ Sums<kCount> sum_partials(const float* partials, int tile, int rows, int b, int r) {
  Sums<kCount> sum = {};
  for (int w = 0; w < kWarps; ++w) {
    const auto part = *reinterpret_cast<const Sums<kCount>*>(
        partials + (w * tile + b) * partial_stride(rows) + r);
    for (int i = 0; i < kCount; ++i) sum.value[i] += part.value[i];
  }
  return sum;
}

// Where the 8 batch rows of a chunk's K word k lie in a warp's stage, in floats: aligned for Batch,
// and the 32 lanes that fill it (lane 4 g + q stores row g of word 4 q + j) meet 32 banks.
constexpr __host__ __device__ int stage_row(int k) { return 12 * k + 8 * (k / 8); }
static_assert(stage_row(15) + 8 <= kStageFloats, "the stage has room");

// Lanes lie along the matrix rows, and where those are fewer than 32, along the batch rows too.
template <int kRows, int kTile>
struct WarpProduct<Ffma, kRows, kTile> {
  static_assert(kTile == 8, "one tile");
  static constexpr int kAcross = kRows < 32 ? kRows : 32;  // lanes along the matrix rows
  static constexpr int kPerLane = kRows / kAcross;         // matrix rows of a lane
  static constexpr int kBatch = kTile * kAcross / 32;      // batch rows of a lane
  struct alignas(kBatch < 4 ? 8 : 16) Batch {
    float value[kBatch];
  };

  const uint32_t* slice;
  int chunks, lane;
  float* stage;
  float sum[kPerLane][kBatch] = {};

  template <int kChunks>
  __device__ void add(const Bits128 (&words)[kChunks][1], int begin, int last) {
#pragma unroll
    for (int a = 0; a < kChunks; ++a) {
      if (begin + a >= last) break;
      add_chunk(words[a][0], begin + a);
    }
  }

  __device__ void add_chunk(const Bits128& words, int chunk) {
    const int g = lane / 4, q = lane % 4;
    const int row = lane % kAcross, batch = lane / kAcross * kBatch;
#pragma unroll
    for (int j = 0; j < 4; ++j) stage[stage_row(4 * q + j) + g] = bits_as<float>(words.word[j]);
    __syncwarp();
    for (int k = 0; k < 16; ++k) {
      const float* w = reinterpret_cast<const float*>(slice) + (chunk * 16 + k) * kRows + row;
      const Batch v = *reinterpret_cast<const Batch*>(stage + stage_row(k) + batch);
#pragma unroll
      for (int r = 0; r < kPerLane; ++r) {
        const float weight = w[r * kAcross];
#pragma unroll
        for (int b = 0; b < kBatch; ++b) sum[r][b] = fused(weight, v.value[b], sum[r][b]);
      }
    }
    __syncwarp();
  }

  __device__ void store_sums(float* partial) const {
    const int row = lane % kAcross, batch = lane / kAcross * kBatch;
#pragma unroll
    for (int r = 0; r < kPerLane; ++r) {
#pragma unroll
      for (int b = 0; b < kBatch; ++b)
        partial[(batch + b) * partial_stride(kRows) + row + r * kAcross] = sum[r][b];
    }
  }
};

// Adds a warp's chunks [first, last), kChunks at a time: while some are multiplied the next ones
// are on their way. `polls`: see LoadedChunks::wait. With FASTLSTM_PROBE a warp asks for one chunk
// until it is there, and only then for the others, which are mostly there by then.
template <int kChunks, class Product, typename T, int kColumns>
__device__ void add_chunks(Product& product, const LanePart<T> (&parts)[kColumns], int first,
                           int last, int polls) {
  LoadedChunks<T, kChunks, kColumns> one, other;
  const auto multiply = [&](auto& loaded, auto& next, int begin) {
    const int end = begin + kChunks;
    if (end < last) next.load(parts, end);
    product.add(loaded.words, begin, last);
    if (end < last) next.wait(parts, end, polls);
  };
#if defined(FASTLSTM_PROBE)  // off: nobody has timed it
  LoadedChunks<T, 1, kColumns> probe;
  probe.load(parts, first);
  probe.wait(parts, first, polls);
#endif
  one.load(parts, first);
  one.wait(parts, first, polls);
  for (int begin = first; begin < last; begin += 2 * kChunks) {
    multiply(one, other, begin);
    if (begin + kChunks < last) multiply(other, one, begin + kChunks);
  }
}

}  // namespace fastlstm
