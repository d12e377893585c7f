// The exchange of values between the blocks of a persistent kernel, through L2 and without flags. A
// block publishes h (forward) or d_gates (backward). A block that needs a row loads it again until
// every value is there (store_exchanged in device.h). The latency from one SM to another bounds the
// exchange.
//
// A warp loads chunks of 64 bytes of 8 batch rows: lane 4 g + q loads bytes 16 q to 16 q + 15 of
// the chunk of row g. These 16 bytes are a *piece*.
#pragma once
#include <type_traits>

#include "../equations/lstm_math.h"
#include "device.h"
#include "persistent.h"

namespace fastlstm {

// divide_up of parts.h, for kernels.
constexpr __host__ __device__ int divide_up(int a, int b) { return (a + b - 1) / b; }

template <typename T>
constexpr int kPerChunk = kChunkBytes / sizeof(T);

template <typename T>
using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint16_t>;

// Returns the bits of a value. A NaN that would mark it as not written becomes another NaN.
template <typename T>
__device__ Bits<T> published_bits(T value) {
  return min(bits_as<Bits<T>>(value), static_cast<Bits<T>>(~Bits<T>(1)));
}

// Whether one of four words has not been written yet.
FASTLSTM_INLINE bool is_unwritten(const Bits128& words) {
  bool any = false;
  for (uint32_t word : words.word) any |= word == 0xffffffff;
  return any;
}

// Stores a value for the other blocks if `store` is true. All lanes of the warp must call it. Two
// neighboring lanes, with units 2 n and 2 n + 1 and equal `store`, store 16-bit values as one word.
template <typename T>
__device__ void publish(T* address, T value, int unit, bool store) {
  uint32_t word = published_bits(value);
  if constexpr (sizeof(T) == 2) {
    word |= shuffle_xor(word, 1) << 16;
    store = store && unit % 2 == 0;
  }
  if (store) store_exchanged(reinterpret_cast<uint32_t*>(address), word);
}

// The row that the slice is multiplied by: exchanged h or d_gates of a batch row, or its h_0.
template <typename T>
struct MultipliedRow {
  const T* values;    // nullptr: zeros
  bool is_exchanged;  // whether other blocks write it while the kernel runs
};

// What a lane loads of a row: one piece of each chunk.
template <typename T>
struct LanePieces {
  const T* address;  // the lane's piece of chunk 0
  int end;           // from this chunk on the lane loads no pieces, and takes zeros
  bool is_exchanged;

  __device__ const Bits128* at(int chunk) const {
    return reinterpret_cast<const Bits128*>(address + chunk * kPerChunk<T>);
  }
};

// end_chunk: the chunk after the last chunk of the warp. k_size: the number of values in the row.
template <typename T>
__device__ LanePieces<T> pieces_of_lane(const MultipliedRow<T>& row, int end_chunk, int k_size,
                                        int lane) {
  const int offset = lane % 4 * (kPerChunk<T> / 4);
  const int end = min(end_chunk, divide_up(k_size - offset, kPerChunk<T>));
  if (!row.values) return {};
  return {row.values + offset, end, row.is_exchanged};
}

// Polls a piece until it is there, or ends the launch after `wait_limit` milliseconds. Reads the
// clock while a load is on its way, when it costs no extra time.
__device__ inline void await_piece(const Bits128* piece, uint32_t wait_limit) {
  uint32_t start = 0;
  for (bool is_first = true;; is_first = false) {
    await_store(piece);
    const Bits128 words = load_exchanged(piece);
    const uint32_t now = milliseconds();
    if (!is_unwritten(words)) return;
    if (is_first) start = now;
    if (now - start > wait_limit) give_up();
  }
}

// The pieces that a lane loads at once: kChunks chunks, from chunk `begin` on, of kNTiles rows.
template <typename T, int kChunks, int kNTiles>
struct LoadedChunks {
  Bits128 words[kChunks][kNTiles];

  __device__ void load(const LanePieces<T> (&lane_pieces)[kNTiles], int begin) {
    for_each_piece([&](int i, int j) {
      words[i][j] = {};
      if (begin + i < lane_pieces[j].end)
        words[i][j] = load_exchanged(lane_pieces[j].at(begin + i));
    });
  }

  // Waits until every value is there. It polls one missing piece, and loads the other missing
  // pieces after that one is there. To poll all of them would delay the stores of the values in L2.
  __device__ void wait(const LanePieces<T> (&lane_pieces)[kNTiles], int begin,
                       uint32_t wait_limit) {
    while (true) {
      const Bits128* missing = nullptr;
      for_each_piece([&](int i, int j) {
        if (lane_pieces[j].is_exchanged && is_unwritten(words[i][j]))
          missing = lane_pieces[j].at(begin + i);
      });
      if (!missing) break;
      await_piece(missing, wait_limit);
      for_each_piece([&](int i, int j) {
        if (is_unwritten(words[i][j]) && lane_pieces[j].is_exchanged)
          words[i][j] = load_exchanged(lane_pieces[j].at(begin + i));
      });
    }
    __syncwarp();
  }

  template <class F>
  static __device__ void for_each_piece(const F& f) {
#pragma unroll
    for (int j = 0; j < kNTiles; ++j) {
#pragma unroll
      for (int i = 0; i < kChunks; ++i) f(i, j);
    }
  }
};

}  // namespace fastlstm
