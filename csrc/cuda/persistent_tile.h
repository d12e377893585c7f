// What the forward and the backward walk of the persistent engine share: a block's rows, its slice
// of W_hh in shared memory, and the product of that slice with vectors that other blocks write.
//
//   partial[w][b][r] = sum over the w-th eighth of k of  slice[r][k] * vector[b][k]
//
// r counts the block's kRows matrix rows, b the kTile batch rows of a pass, w the warps. K is
// always split 8 ways in whole chunks and summed in the same order, so the result of a row depends
// neither on the division of the work nor on the other rows.
//
// A chunk is 64 bytes of every vector: lane 4 g + q loads the 16 bytes at 16 q of batch row g.
// These four words are the B operands of two mma steps without any shuffling, because the order of
// k within a chunk is free as long as the slice is stored in the same one (Fragments::place).
#pragma once
#include <type_traits>

#include "../equations/lstm_math.h"
#include "device.h"
#include "persistent.h"
#include "trace.h"

namespace fastlstm {

template <typename To, typename From>
FASTLSTM_HD To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From), "same size");
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

FASTLSTM_HD uint32_t pack(uint16_t low, uint16_t high) { return low | uint32_t(high) << 16; }

// --- the kinds of arithmetic ---
// operand(): a word of memory (two 16-bit values or a float) as the multiplication wants it.

struct BFloat16Mma {
  using T = bfloat16;
  static __device__ uint32_t operand(uint32_t word) { return word; }
  static __device__ void mma(float (&d)[4], const Words& a, uint32_t b0, uint32_t b1) {
    mma_bfloat16(d, a, b0, b1);
  }
};

struct Float16Mma {
  using T = float16;
  static __device__ uint32_t operand(uint32_t word) { return word; }
  static __device__ void mma(float (&d)[4], const Words& a, uint32_t b0, uint32_t b1) {
    mma_float16(d, a, b0, b1);
  }
};

struct Tf32Mma {
  using T = float;
  static __device__ uint32_t operand(uint32_t word) { return to_tf32(bits_as<float>(word)); }
  static __device__ void mma(float (&d)[4], const Words& a, uint32_t b0, uint32_t b1) {
    mma_tf32(d, a, b0, b1);
  }
};

// IEEE float32 without tensor cores.
struct Ffma {
  using T = float;
  static __device__ uint32_t operand(uint32_t word) { return word; }
};

template <typename T>
constexpr int kPerChunk = kChunkBytes / sizeof(T);

// Steps from asking L2 for what an earlier pass over the sequence left in memory, to loading it:
// memory may take longer than a step.
constexpr int kPrefetch = 2;

// --- what blocks exchange (see device.h) ---

// The bits of a value, but never all of them set: a NaN becomes another NaN.
template <typename T>
FASTLSTM_HD auto announced(T value) {
  using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint16_t>;
  const Bits bits = bits_as<Bits>(value);
  return static_cast<Bits>(bits - (bits == static_cast<Bits>(~Bits(0))));
}

// Values come by the word, 16-bit ones where rows are not aligned one by one.
template <typename T, bool kAligned>
FASTLSTM_HD bool is_unwritten(const Words& words) {
  bool any = false;
  for (uint32_t word : words.word) any |= word == 0xffffffff;
  if (sizeof(T) == 2 && !kAligned)
    for (uint32_t word : words.word) any |= (word & 0xffff) == 0xffff || word >= 0xffff0000;
  return any;
}

// Stores a value for the other blocks, if `store` says so. The whole warp comes here: of aligned
// 16-bit values two lanes side by side, who agree about `store`, make a word.
template <typename T>
__device__ void announce(T* address, T value, bool store, bool aligned) {
  const auto bits = announced(value);
  if constexpr (sizeof(T) == 2) {
    if (aligned) {
      const uint32_t other = shuffle_xor(uint32_t(bits), 1);
      if (store && threadIdx.x % 2 == 0)
        store_exchanged(reinterpret_cast<uint32_t*>(address),
                        pack(bits, static_cast<uint16_t>(other)));
      return;
    }
  }
  if (store) store_exchanged(reinterpret_cast<decltype(announced(value))*>(address), bits);
}

// A vector of which a lane loads its part: nullptr for zeros.
template <typename T>
struct Source {
  const T* vector = nullptr;
  bool exchanged = false;  // other blocks write it while this kernel runs
};

// Values k .. k + 16 bytes of a vector of `depth` values; zeros beyond it and for nullptr.
// kAligned: vectors start, and end, at multiples of 16 bytes.
template <bool kAligned, typename T>
__device__ Words load_words(const T* vector, int k, int depth) {
  Words words = {{0, 0, 0, 0}};
  if (!vector || k >= depth) return words;
  if constexpr (kAligned) {
    words = load_exchanged(reinterpret_cast<const Words*>(vector + k));
  } else if constexpr (sizeof(T) == 4) {
    for (int j = 0; j < 4 && k + j < depth; ++j)
      words.word[j] = bits_as<uint32_t>(load_exchanged(vector + k + j));
  } else {
    for (int j = 0; j < 8 && k + j < depth; ++j)
      words.word[j / 2] |= uint32_t(bits_as<uint16_t>(load_exchanged(vector + k + j)))
                           << 16 * (j % 2);
  }
  return words;
}

// What a warp loads at once: kChunks chunks of kColumns vectors, this lane's 16 bytes of each.
template <typename T, bool kAligned, int kChunks, int kColumns>
struct Group {
  Words words[kChunks][kColumns];

  static __device__ int first_value(int chunk) {
    return chunk * kPerChunk<T> + threadIdx.x % 4 * (kPerChunk<T> / 4);
  }

  // Chunks begin .. ; zeros from chunk `last` on.
  __device__ void load(const Source<T> (&source)[kColumns], int begin, int last, int depth) {
#pragma unroll
    for (int a = 0; a < kChunks; ++a) {
#pragma unroll
      for (int j = 0; j < kColumns; ++j)
        words[a][j] = load_words<kAligned>(begin + a < last ? source[j].vector : nullptr,
                                           first_value(begin + a), depth);
    }
  }

  // Until everything has been written. All that is missing is loaded again together.
  __device__ void settle(const Source<T> (&source)[kColumns], int begin, int depth, int step) {
    long long looks = 0;
    for (bool missing = true; missing;) {
      missing = false;
#pragma unroll
      for (int a = 0; a < kChunks; ++a) {
#pragma unroll
        for (int j = 0; j < kColumns; ++j) {
          if (!source[j].exchanged || !is_unwritten<T, kAligned>(words[a][j])) continue;
          missing = true;
          const int k = first_value(begin + a), end = k + kPerChunk<T> / 4;
          before_looking_again(source[j].vector + k, (end < depth ? end : depth) - k, looks, step);
          trace_look(step);
          words[a][j] = load_words<kAligned>(source[j].vector, k, depth);
        }
      }
    }
#pragma unroll
    for (int a = 0; a < kChunks; ++a) {
#pragma unroll
      for (int j = 0; j < kColumns; ++j)
        if (source[j].exchanged) arrived(source[j].vector + first_value(begin + a));
    }
    __syncwarp();
  }
};

// --- the slice of W_hh ---

// Where the words of the slice lie. mma: [row tile][chunk][step 0, 1][lane][register], so that a
// lane reads a fragment at once; a tile of only 8 rows leaves out the registers of the others.
// FFMA: [word][row], so that lanes read neighbouring rows.
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

  static __device__ Words load(const uint32_t* slice, int chunks, int tile, int chunk, int step,
                               int lane) {
    const int i = (((tile * chunks + chunk) * 2 + step) * 32 + lane) * kRegisters;
    if constexpr (kRegisters == 4) return *reinterpret_cast<const Words*>(slice + i);
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

// --- the product ---

constexpr __host__ __device__ int partial_stride(int rows) { return rows + kPartialPadding; }

// A warp's part: chunks first .. last - 1. source[j]: this lane's vector, of batch row
// 8 j + lane / 4 of the pass.
template <class P, int kRows, int kTile>
struct Product {
  using T = typename P::T;
  using F = Fragments<P, kRows>;
  static constexpr int kColumns = kTile / 8;
  static constexpr int kAhead = 4 / kColumns;  // chunks of a group; two groups are in flight

  template <bool kAligned>
  static __device__ void run(const uint32_t* slice, int chunks, int first, int last,
                             const Source<T> (&source)[kColumns], int depth, int step,
                             float* partial, float* /*stage*/) {
    const int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
    float sum[F::kTiles][kColumns][4] = {};
    Group<T, kAligned, kAhead, kColumns> group, next;
    group.load(source, first, last, depth);
    for (int begin = first; begin < last; begin += kAhead) {
      next.load(source, begin + kAhead, last, depth);
      group.settle(source, begin, depth, step);
#pragma unroll
      for (int a = 0; a < kAhead; ++a) {
        if (begin + a >= last) break;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          uint32_t b[kColumns][2];
#pragma unroll
          for (int j = 0; j < kColumns; ++j) {
            b[j][0] = P::operand(group.words[a][j].word[2 * half]);
            b[j][1] = P::operand(group.words[a][j].word[2 * half + 1]);
          }
#pragma unroll
          for (int m = 0; m < F::kTiles; ++m) {
            const Words weights = F::load(slice, chunks, m, begin + a, half, lane);
#pragma unroll
            for (int j = 0; j < kColumns; ++j) P::mma(sum[m][j], weights, b[j][0], b[j][1]);
          }
        }
      }
      group = next;
    }
    constexpr int stride = partial_stride(kRows);
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

// Lanes lie along the matrix rows, and where those are fewer than 32, along the batch rows too.
template <int kRows, int kTile>
struct Product<Ffma, kRows, kTile> {
  static_assert(kTile == 8, "one tile");
  static constexpr int kAcross = kRows < 32 ? kRows : 32;  // lanes along the matrix rows
  static constexpr int kPerLane = kRows / kAcross;         // matrix rows of a lane
  static constexpr int kBatch = kTile * kAcross / 32;      // batch rows of a lane
  static constexpr int kStageStride = 12;                  // 8 batch rows, padded
  static constexpr int kAhead = 4;
  struct alignas(kBatch < 4 ? 8 : 16) Batch {
    float value[kBatch];
  };

  template <bool kAligned>
  static __device__ void run(const uint32_t* slice, int /*chunks*/, int first, int last,
                             const Source<float> (&source)[1], int depth, int step, float* partial,
                             float* stage) {
    const int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
    const int row = lane % kAcross, batch = lane / kAcross * kBatch;
    const float* weights = reinterpret_cast<const float*>(slice) + row;
    float sum[kPerLane][kBatch] = {};
    for (int begin = first; begin < last; begin += kAhead) {
      Group<float, kAligned, kAhead, 1> group;
      group.load(source, begin, last, depth);
      group.settle(source, begin, depth, step);
#pragma unroll
      for (int a = 0; a < kAhead; ++a) {
        if (begin + a >= last) break;
#pragma unroll
        for (int j = 0; j < 4; ++j)
          stage[(4 * q + j) * kStageStride + g] = bits_as<float>(group.words[a][0].word[j]);
        __syncwarp();
        for (int k = 0; k < 16; ++k) {
          const float* w = weights + ((begin + a) * 16 + k) * kRows;
          const Batch v = *reinterpret_cast<const Batch*>(stage + k * kStageStride + batch);
#pragma unroll
          for (int r = 0; r < kPerLane; ++r) {
#pragma unroll
            for (int b = 0; b < kBatch; ++b) sum[r][b] += w[r * kAcross] * v.value[b];
          }
        }
        __syncwarp();
      }
    }
#pragma unroll
    for (int r = 0; r < kPerLane; ++r) {
#pragma unroll
      for (int b = 0; b < kBatch; ++b)
        partial[(batch + b) * partial_stride(kRows) + row + r * kAcross] = sum[r][b];
    }
  }
};

// Asks for the shares of a later step.
template <typename T>
__device__ void prefetch(const Zoneout<T>& zoneout, int64_t flat_row, int unit) {
  if (!zoneout.h) return;
  prefetch(zoneout.h + flat_row * zoneout.h_stride + unit);
  prefetch(zoneout.c + flat_row * zoneout.c_stride + unit);
}

// --- a block ---

// Which part of the work a block has, and its shared memory.
template <class P, int kRows, int kUnits, int kTile>
struct Block {
  using T = typename P::T;

  const Sequence& sequence;
  const Tiling& tiling;
  int direction, group, part;  // part: which units
  bool reverse;
  int first_unit, units;  // units < kUnits in the last part
  int passes;
  int depth, chunks;  // of the vectors that the slice is multiplied with
  int lane, warp, first_chunk, last_chunk;
  uint32_t* slice;
  float *stage, *partials, *state;
  int *batch_row, *length;  // [group_rows] of the batch; length -1: no such row

  __device__ Block(const Sequence& sequence, const Tiling& tiling, bool first_reverse, int depth)
      : sequence(sequence), tiling(tiling), depth(depth) {
    part = blockIdx.x % tiling.unit_blocks;
    group = blockIdx.x / tiling.unit_blocks % tiling.row_groups;
    direction = blockIdx.x / tiling.unit_blocks / tiling.row_groups;
    reverse = first_reverse || direction == 1;
    first_unit = part * kUnits;
    units = sequence.hidden_size - first_unit < kUnits ? sequence.hidden_size - first_unit : kUnits;
    passes = (tiling.group_rows + kTile - 1) / kTile;
    chunks = (depth + kPerChunk<T> - 1) / kPerChunk<T>;
    lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    first_chunk = warp * chunks / kWarps, last_chunk = (warp + 1) * chunks / kWarps;

    slice = reinterpret_cast<uint32_t*>(shared_memory());
    stage = reinterpret_cast<float*>(slice + kRows * chunks * 16) + warp * kStageFloats;
    partials = reinterpret_cast<float*>(slice + kRows * chunks * 16);
    if (std::is_same<P, Ffma>::value) partials += kWarps * kStageFloats;
    state = partials + kWarps * kTile * partial_stride(kRows);
    batch_row = reinterpret_cast<int*>(state + tiling.group_rows * kUnits);
    length = batch_row + tiling.group_rows;

    for (int i = threadIdx.x; i < tiling.group_rows; i += kThreads) {
      const int position = group + tiling.row_groups * i;
      const bool exists = position < sequence.batch;
      const int row =
          exists && sequence.order ? static_cast<int>(sequence.order[position]) : position;
      batch_row[i] = row;
      length[i] = exists ? live_steps(sequence, row) : -1;
    }
  }

  // First flat row of a step; 0 for a step that does not exist.
  __device__ int64_t offset(int t) const {
    if (t < 0 || t >= sequence.steps) return 0;
    return sequence.offsets ? sequence.offsets[t] : int64_t(t) * sequence.batch;
  }

  __device__ bool is_live(int t, int i) const { return i < tiling.group_rows && t < length[i]; }
  // Dead positions exist in padded data only.
  __device__ bool is_padding(int t, int i) const {
    return !sequence.offsets && i < tiling.group_rows && length[i] >= 0 && t >= length[i];
  }
  __device__ bool is_reset(int t, int i) const {
    return sequence.reset && sequence.reset[int64_t(t) * sequence.batch + batch_row[i]];
  }
  __device__ bool is_first_step(int t, int i) const { return t == (reverse ? length[i] - 1 : 0); }
  __device__ bool is_last_step(int t, int i) const { return t == (reverse ? 0 : length[i] - 1); }

  // Whether any row of a pass is alive: the same answer for the whole block.
  __device__ bool pass_is_live(int t, int pass) const {
    for (int i = pass * kTile; i < (pass + 1) * kTile && i < tiling.group_rows; ++i)
      if (t < length[i]) return true;
    return false;
  }

  __device__ void multiply(const Source<T> (&source)[kTile / 8], bool aligned, int step) const {
    trace(step, kProductBegins);
    __syncwarp();  // loads that stand above are under way before this waits
    float* const partial = partials + warp * kTile * partial_stride(kRows);
    if (aligned)
      Product<P, kRows, kTile>::template run<true>(slice, chunks, first_chunk, last_chunk, source,
                                                   depth, step, partial, stage);
    else
      Product<P, kRows, kTile>::template run<false>(slice, chunks, first_chunk, last_chunk, source,
                                                    depth, step, partial, stage);
    trace(step, kProductDone);
  }

  // Batch row b of the pass, matrix rows r .. r + kCount - 1.
  template <int kCount>
  struct alignas(4 * kCount) Products {
    float value[kCount];
  };
  template <int kCount>
  __device__ Products<kCount> product(int b, int r) const {
    Products<kCount> sum = {};
    for (int w = 0; w < kWarps; ++w) {
      const auto part = *reinterpret_cast<const Products<kCount>*>(
          partials + (w * kTile + b) * partial_stride(kRows) + r);
      for (int i = 0; i < kCount; ++i) sum.value[i] += part.value[i];
    }
    return sum;
  }
};

// --- launching ---

inline bool is_aligned(const void* pointer, int64_t row_bytes) {
  return reinterpret_cast<uintptr_t>(pointer) % 16 == 0 && row_bytes % 16 == 0;
}

// The arithmetic of a dtype.
template <typename T>
struct MmaOf {
  using type = Tf32Mma;
};
template <>
struct MmaOf<bfloat16> {
  using type = BFloat16Mma;
};
template <>
struct MmaOf<float16> {
  using type = Float16Mma;
};

// A launch of the instance that was planned. Kernel::template instance<P, kUnits, kTile>() is the
// kernel; `aligned` is for load_words.
template <class Kernel, class Call>
struct Launcher {
  const Call& call;
  const Task& task;
  const Tiling& tiling;
  const bool aligned;
  cudaStream_t stream;

  template <class P, int kUnits, int kTile>
  cudaError_t run() const {
    return launch_cooperative(Kernel::template instance<P, kUnits, kTile>(),
                              dim3(static_cast<unsigned>(tiling.blocks())), dim3(kThreads),
                              static_cast<size_t>(SharedLayout(task, tiling).total()), stream, call,
                              tiling, aligned);
  }

  template <class P, int kUnits>
  cudaError_t run_units() const {
    if constexpr (is_compiled(std::is_same<P, Ffma>::value, kUnits, 16))
      if (tiling.row_tile == 16) return run<P, kUnits, 16>();
    if (tiling.row_tile == 8) return run<P, kUnits, 8>();
    return cudaErrorInvalidValue;
  }

  template <class P>
  cudaError_t run_product() const {
    if (tiling.units == 8) return run_units<P, 8>();
    if (tiling.units == 16) return run_units<P, 16>();
    if (tiling.units == 32) return run_units<P, 32>();
    return cudaErrorInvalidValue;
  }

  template <typename T>
  cudaError_t run_dtype() const {
    if constexpr (std::is_same<T, float>::value)
      if (task.ffma()) return run_product<Ffma>();
    return run_product<typename MmaOf<T>::type>();
  }
};

}  // namespace fastlstm
