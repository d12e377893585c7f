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
FASTLSTM_INLINE To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From), "same size");
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

FASTLSTM_INLINE int smaller(int a, int b) { return a < b ? a : b; }

FASTLSTM_INLINE uint32_t pack(uint16_t low, uint16_t high) { return low | uint32_t(high) << 16; }

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

template <typename T>
using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint16_t>;

// The bits of a value, but never all of them set: a NaN becomes another NaN.
template <typename T>
FASTLSTM_INLINE Bits<T> announced(T value) {
  constexpr Bits<T> kLast = static_cast<Bits<T>>(~Bits<T>(1));
  const auto bits = bits_as<Bits<T>>(value);
  return bits < kLast ? bits : kLast;
}

// Values come by the word; where rows are not aligned, 16-bit ones come one by one.
template <typename T, bool kAligned>
FASTLSTM_INLINE bool is_unwritten(const Words& words) {
  bool any = false;
  for (uint32_t word : words.word) any |= word == 0xffffffff;
  if (sizeof(T) == 2 && !kAligned)
    for (uint32_t word : words.word) any |= (word & 0xffff) == 0xffff || word >= 0xffff0000;
  return any;
}

// Stores a value for the other blocks, if `store` says so. The whole warp comes here: of aligned
// 16-bit values two lanes side by side, units 2 n and 2 n + 1, who agree about `store`, make a
// word.
template <typename T>
__device__ void announce(T* address, T value, int unit, bool store, bool aligned) {
  const auto bits = announced(value);
  if constexpr (sizeof(T) == 2) {
    if (aligned) {
      const uint32_t other = shuffle_xor(uint32_t(bits), 1);
      if (store && unit % 2 == 0)
        store_exchanged(reinterpret_cast<uint32_t*>(address),
                        pack(bits, static_cast<uint16_t>(other)));
      return;
    }
  }
  if (store) store_exchanged(reinterpret_cast<Bits<T>*>(address), bits);
}

// Four gates are announced `width` values apart. Of aligned 16-bit values the even lane stores i
// and f of two units, the odd lane g and o, so that one word each way is all that the two tell each
// other.
template <typename T>
constexpr bool kInPairs = sizeof(T) == 2 && kGatePairs;

template <typename T>
struct GatesAddress {
  T *first, *second;  // of the gates that this lane stores
};
template <typename T>
__device__ GatesAddress<T> gates_address(T* i, int width, int unit, bool aligned) {
  T* const first = kInPairs<T> && aligned && unit % 2 == 1 ? i + 2 * width - 1 : i;
  return {first, first + width};
}

template <typename T>
__device__ void announce_pairs(const GatesAddress<T>& to, const Gates<T>& gates, bool odd,
                               bool store) {
  const uint32_t i_f = pack(announced(gates.i), announced(gates.f));
  const uint32_t g_o = pack(announced(gates.g), announced(gates.o));
  const uint32_t mine = odd ? g_o : i_f, other = shuffle_xor(odd ? i_f : g_o, 1);
  const uint32_t even_unit = odd ? other : mine, odd_unit = odd ? mine : other;
  if (!store) return;
  store_exchanged(reinterpret_cast<uint32_t*>(to.first), (even_unit & 0xffff) | odd_unit << 16);
  store_exchanged(reinterpret_cast<uint32_t*>(to.second),
                  even_unit >> 16 | (odd_unit & 0xffff0000));
}

template <typename T>
__device__ void announce(const GatesAddress<T>& to, const Gates<T>& gates, int unit, bool store,
                         bool aligned) {
  if constexpr (kInPairs<T>)
    if (aligned) return announce_pairs(to, gates, unit % 2, store);
  const int64_t width = to.second - to.first;
  announce(to.first, gates.i, unit, store, aligned);
  announce(to.second, gates.f, unit, store, aligned);
  announce(to.second + width, gates.g, unit, store, aligned);
  announce(to.second + 2 * width, gates.o, unit, store, aligned);
}

// A vector of which a lane loads its part: nullptr for zeros.
template <typename T>
struct Source {
  const T* vector = nullptr;
  bool exchanged = false;  // other blocks write it while this kernel runs
};

// A lane's part of a vector: 16 bytes of each chunk, 64 bytes apart.
template <typename T>
struct Pieces {
  const T* address;  // of chunk 0
  int count;         // values from there to the vector's end
  int end;           // chunks from this one on are zeros
  bool exchanged;

  __device__ const T* at(int chunk) const { return address + chunk * kPerChunk<T>; }
  __device__ int count_at(int chunk) const { return count - chunk * kPerChunk<T>; }
};

// Of a vector of `depth` values, whose chunks from `last` on are for others.
template <typename T>
__device__ Pieces<T> pieces_of(const Source<T>& source, int last, int depth, int lane) {
  const int skipped = lane % 4 * (kPerChunk<T> / 4), count = depth - skipped;
  const int end = smaller(last, (count + kPerChunk<T> - 1) / kPerChunk<T>);
  if (!source.vector) return {nullptr, 0, 0, false};
  return {source.vector + skipped, count, end, source.exchanged};
}

// The 16 bytes at `address`, of which `count` values exist; zeros behind them. kAligned: all exist,
// and the address is a multiple of 16.
template <bool kAligned, typename T>
__device__ Words load_words(const T* address, int count) {
  if constexpr (kAligned) return load_exchanged(reinterpret_cast<const Words*>(address));
  Words words = {{0, 0, 0, 0}};
  constexpr int kPerWord = 4 / sizeof(T);
  for (int j = 0; j < 4 * kPerWord && j < count; ++j) {
    const auto bits = bits_as<Bits<T>>(load_exchanged(address + j));
    words.word[j / kPerWord] |= uint32_t(bits) << 16 * (j % kPerWord);
  }
  return words;
}

// What a warp loads at once: kChunks chunks of kColumns vectors, this lane's 16 bytes of each.
template <typename T, bool kAligned, int kChunks, int kColumns>
struct Group {
  Words words[kChunks][kColumns];

  // Chunks begin .. .
  __device__ void load(const Pieces<T> (&pieces)[kColumns], int begin) {
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
#pragma unroll
      for (int a = 0; a < kChunks; ++a) {
        const int chunk = begin + a;
        words[a][j] = {{0, 0, 0, 0}};
        if (chunk < pieces[j].end)
          words[a][j] = load_words<kAligned>(pieces[j].at(chunk), pieces[j].count_at(chunk));
      }
    }
  }

  // Until everything has been written.
  __device__ void settle(const Pieces<T> (&pieces)[kColumns], int begin, int step) {
    long long looks = 0;
    while (is_missing(pieces)) look_again(pieces, begin, step, looks);
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
#pragma unroll
      for (int a = 0; a < kChunks; ++a)
        if (pieces[j].exchanged && begin + a < pieces[j].end) arrived(pieces[j].at(begin + a));
    }
    __syncwarp();
  }

  __device__ bool is_missing(const Pieces<T> (&pieces)[kColumns]) const {
    bool any = false;
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
#pragma unroll
      for (int a = 0; a < kChunks; ++a)
        any |= pieces[j].exchanged && is_unwritten<T, kAligned>(words[a][j]);
    }
    return any;
  }

  // Loads all that is missing, together.
  __device__ void look_again(const Pieces<T> (&pieces)[kColumns], int begin, int step,
                             long long& looks) {
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
#pragma unroll
      for (int a = 0; a < kChunks; ++a) {
        if (!is_unwritten<T, kAligned>(words[a][j]) || !pieces[j].exchanged) continue;
        const T* const address = pieces[j].at(begin + a);
        const int count = pieces[j].count_at(begin + a);
        before_looking_again(address, smaller(count, kPerChunk<T> / 4), looks, step);
        trace_look(step);
        words[a][j] = load_words<kAligned>(address, count);
      }
    }
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

// The sums of a warp. add() takes the chunks begin .. of a group, before chunk `last`; of a lane it
// has the vectors of the batch rows 8 j + lane / 4 of the pass.
template <class P, int kRows, int kTile>
struct Product {
  using F = Fragments<P, kRows>;
  static constexpr int kColumns = kTile / 8;

  const uint32_t* slice;
  int chunks, lane;
  float* stage;  // of FFMA
  float sum[F::kTiles][kColumns][4] = {};

  template <int kChunks>
  __device__ void add(const Words (&words)[kChunks][kColumns], int begin, int last) {
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
          const Words weights = F::load(slice, chunks, m, begin + a, half, lane);
#pragma unroll
          for (int j = 0; j < kColumns; ++j) P::mma(sum[m][j], weights, b[j][0], b[j][1]);
        }
      }
    }
  }

  __device__ void leave(float* partial) const {
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

// Where the 8 batch rows of a chunk's K word k lie in a warp's stage, in floats: aligned for Batch,
// and the 32 lanes that fill it (lane 4 g + q stores row g of word 4 q + j) meet 32 banks.
constexpr __host__ __device__ int stage_row(int k) { return 12 * k + 8 * (k / 8); }
static_assert(stage_row(15) + 8 <= kStageFloats, "the stage has room");

// Lanes lie along the matrix rows, and where those are fewer than 32, along the batch rows too.
template <int kRows, int kTile>
struct Product<Ffma, kRows, kTile> {
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
  __device__ void add(const Words (&words)[kChunks][1], int begin, int last) {
#pragma unroll
    for (int a = 0; a < kChunks; ++a) {
      if (begin + a >= last) break;
      add_chunk(words[a][0], begin + a);
    }
  }

  __device__ void add_chunk(const Words& words, int chunk) {
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
        for (int b = 0; b < kBatch; ++b) sum[r][b] += weight * v.value[b];
      }
    }
    __syncwarp();
  }

  __device__ void leave(float* partial) const {
    const int row = lane % kAcross, batch = lane / kAcross * kBatch;
#pragma unroll
    for (int r = 0; r < kPerLane; ++r) {
#pragma unroll
      for (int b = 0; b < kBatch; ++b)
        partial[(batch + b) * partial_stride(kRows) + row + r * kAcross] = sum[r][b];
    }
  }
};

// Adds a warp's chunks first .. last - 1, kChunks at a time: while one group is multiplied the next
// is on its way.
template <bool kAligned, int kChunks, class Product, typename T, int kColumns>
__device__ void add_chunks(Product& product, const Pieces<T> (&pieces)[kColumns], int first,
                           int last, int step) {
  Group<T, kAligned, kChunks, kColumns> one, other;
  const auto take_turn = [&](auto& group, auto& next, int begin) {
    const int end = begin + kChunks;
    if (end < last) next.load(pieces, end);
    product.add(group.words, begin, last);
    if (end < last) next.settle(pieces, end, step);
  };
  one.load(pieces, first);
  one.settle(pieces, first, step);
  for (int begin = first; begin < last; begin += 2 * kChunks) {
    take_turn(one, other, begin);
    if (begin + kChunks < last) take_turn(other, one, begin + kChunks);
  }
}

// The same with one group that the next is moved into, and which so waits for both.
template <bool kAligned, int kChunks, class Product, typename T, int kColumns>
__device__ void add_chunks_moving(Product& product, const Pieces<T> (&pieces)[kColumns], int first,
                                  int last, int step) {
  Group<T, kAligned, kChunks, kColumns> group, next;
  group.load(pieces, first);
  for (int begin = first; begin < last; begin += kChunks) {
    next.load(pieces, begin + kChunks);
    group.settle(pieces, begin, step);
    product.add(group.words, begin, last);
    group = next;
  }
}

// Asks for the shares of a later step.
template <typename T>
__device__ void prefetch(const Zoneout<T>& zoneout, int64_t flat_row, int unit) {
  if (!zoneout.h) return;
  prefetch(zoneout.h + flat_row * zoneout.h_stride + unit);
  prefetch(zoneout.c + flat_row * zoneout.c_stride + unit);
}

// --- a block ---

// What a thread loads before it waits is kept as it lies in memory.
template <typename T>
using Kept = std::conditional_t<kRawInput, T, float>;
template <typename T>
__device__ Gates<float> to_float(const Gates<T>& gates) {
  return {float(gates.i), float(gates.f), float(gates.g), float(gates.o)};
}

// The pointers of a direction, fetched now and not, by their index, when each is used.
template <class Direction>
__device__ Direction fetch(const Direction (&direction)[2], int index) {
  Direction fetched = direction[index];
  fetched.for_each_pointer([](auto*& pointer) { pointer = kept(pointer); });
  return fetched;
}

// A unit of a row in a step, which one thread has.
struct Place {
  int row, i, unit;  // row of the pass and of the group; unit of the block
  bool exchanged;    // others may ask for it
  bool exists;       // it is not behind the last unit
  bool live;         // the row still goes on; else it is padding, where 0 is stored
  int batch_row;
};

// Which part of the work a block has, and its shared memory.
template <class P, int kRows, int kUnits, int kTile>
struct Block {
  using T = typename P::T;

  const Sequence& sequence;
  const Tiling& tiling;
  int direction, group, part;  // part: which units
  bool reverse;
  int first_unit, units, exchanged_units;  // fewer than kUnits in the last part
  int passes;
  int depth, chunks;  // of the vectors that the slice is multiplied with
  bool aligned;       // and whether those are whole pieces of 16 bytes
  int thread, lane, warp, first_chunk, last_chunk;
  uint32_t* slice;
  float *stage, *partials, *state;
  int *batch_row, *length;  // [group_rows] of the batch; length -1: no such row

  __device__ Block(const Sequence& sequence, const Tiling& tiling, bool first_reverse, int gates,
                   bool aligned)
      : sequence(sequence), tiling(tiling), aligned(kPadding || aligned) {
    part = blockIdx.x % tiling.unit_blocks;
    group = blockIdx.x / tiling.unit_blocks % tiling.row_groups;
    direction = blockIdx.x / tiling.unit_blocks / tiling.row_groups;
    reverse = first_reverse || direction == 1;
    first_unit = part * kUnits;
    units = smaller(sequence.hidden_size - first_unit, kUnits);
    exchanged_units = smaller(tiling.exchange_width - first_unit, kUnits);
    depth = gates * tiling.exchange_width;
    passes = (tiling.group_rows + kTile - 1) / kTile;
    chunks = (depth + kPerChunk<T> - 1) / kPerChunk<T>;
    thread = kept(static_cast<int>(threadIdx.x)), lane = thread % 32, warp = thread / 32;
    first_chunk = warp * chunks / kWarps, last_chunk = (warp + 1) * chunks / kWarps;

    slice = reinterpret_cast<uint32_t*>(shared_memory());
    stage = reinterpret_cast<float*>(slice + kRows * chunks * 16) + warp * kStageFloats;
    partials = reinterpret_cast<float*>(slice + kRows * chunks * 16);
    if (std::is_same<P, Ffma>::value) partials += kWarps * kStageFloats;
    state = partials + kWarps * kTile * partial_stride(kRows);
    batch_row = reinterpret_cast<int*>(state + tiling.group_rows * kUnits);
    length = batch_row + tiling.group_rows;

    for (int i = thread; i < tiling.group_rows; i += kThreads) {
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

  // The thread's j-th unit of a pass; none of it is true where there is no such row.
  __device__ Place place(int t, int pass, int j) const {
    const int index = thread + j * kThreads;
    const int row = index / kUnits;
    Place place = {row, pass * kTile + row, index % kUnits, false, false, false, 0};
    if (place.row >= kTile || place.i >= tiling.group_rows) return place;
    const int steps = length[place.i];
    const bool in_memory = t < steps || (steps >= 0 && !sequence.offsets);  // packed: no padding
    place.exchanged = in_memory && place.unit < exchanged_units;
    place.exists = in_memory && place.unit < units;
    place.live = place.exists && t < steps;
    place.batch_row = batch_row[place.i];
    return place;
  }

  __device__ bool is_live(int t, int i) const { return i < tiling.group_rows && t < length[i]; }
  __device__ bool is_reset(int t, int i) const { return reset_flag(t, i); }
  __device__ unsigned char reset_flag(int t, int i) const {
    if (!sequence.reset) return 0;
    return reinterpret_cast<const unsigned char*>(
        sequence.reset)[int64_t(t) * sequence.batch + batch_row[i]];
  }
  __device__ bool is_first_step(int t, int i) const { return t == (reverse ? length[i] - 1 : 0); }
  __device__ bool is_last_step(int t, int i) const { return t == (reverse ? 0 : length[i] - 1); }

  // Whether any row of a pass is alive: the same answer for the whole block.
  __device__ bool pass_is_live(int t, int pass) const {
    for (int i = pass * kTile; i < (pass + 1) * kTile && i < tiling.group_rows; ++i)
      if (t < length[i]) return true;
    return false;
  }

  __device__ void multiply(const Source<T> (&source)[kTile / 8], int step) const {
    trace(step, kProductBegins);
    __syncwarp();  // loads that stand above are under way before this waits
    Pieces<T> pieces[kTile / 8];
#pragma unroll
    for (int j = 0; j < kTile / 8; ++j) pieces[j] = pieces_of(source[j], last_chunk, depth, lane);
    if (aligned)
      multiply<true>(pieces, step);
    else
      multiply<kPadding>(pieces, step);
  }

  // Chunks that a warp loads at once. Backward has vectors four times as long. FFMA and the widest
  // tile take their time over a chunk, and the latter's sums leave few registers.
  static constexpr __host__ __device__ int chunks_at_once() {
    if (!kTwoGroups) return 4 / (kTile / 8);
    if (std::is_same<P, Ffma>::value) return 2;
    if (kRows * kTile >= 2048) return 1;
    return (kRows == kUnits ? 8 : 4) / (kTile / 8);
  }

  template <bool kAligned>
  __device__ void multiply(const Pieces<T> (&pieces)[kTile / 8], int step) const {
    constexpr int kChunks = chunks_at_once();
    Product<P, kRows, kTile> product{slice, chunks, lane, stage};
    if constexpr (kTwoGroups)
      add_chunks<kAligned, kChunks>(product, pieces, first_chunk, last_chunk, step);
    else
      add_chunks_moving<kAligned, kChunks>(product, pieces, first_chunk, last_chunk, step);
    product.leave(partials + warp * kTile * partial_stride(kRows));
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
    if (kPadding && !aligned) return cudaErrorInvalidValue;
    if (tiling.exchange_width != task.exchange_width()) return cudaErrorInvalidValue;
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
