// The exchange of values between the blocks of a persistent kernel, through L2 and without flags. A
// block publishes h (forward) or d_gates (backward). A block that needs a row loads it again and
// again until every value is there; device.h says how it recognizes a value that is not. The
// latency from one SM to another bounds the exchange.
//
// A chunk is 64 bytes of a row. Lane 4 g + q of a warp loads bytes 16 q to 16 q + 15 of a chunk,
// for batch row g.
#pragma once
#include <type_traits>

#include "../equations/lstm_math.h"
#include "device.h"
#include "persistent.h"

namespace fastlstm {

template <typename T>
constexpr int kPerChunk = kChunkBytes / sizeof(T);

// The unsigned integer type of the size of an exchanged value.
template <typename T>
using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint16_t>;

// The bits of a value. If all of them are set, which is one of the NaNs, they become those of
// another NaN.
template <typename T>
FASTLSTM_INLINE Bits<T> published_bits(T value) {
  constexpr Bits<T> kLast = static_cast<Bits<T>>(~Bits<T>(1));
  const auto bits = bits_as<Bits<T>>(value);
  return bits < kLast ? bits : kLast;
}

FASTLSTM_INLINE bool is_unwritten(const Bits128& words) {
  bool any = false;
  for (uint32_t word : words.word) any |= word == 0xffffffff;
  return any;
}

// Stores a value for the other blocks if `store` is true. All lanes of the warp must call it. Two
// neighboring lanes, with units 2 n and 2 n + 1, store their 16-bit values as one word. Their
// `store` must be equal.
template <typename T>
__device__ void publish(T* address, T value, int unit, bool store) {
  uint32_t word = published_bits(value);
  if constexpr (sizeof(T) == 2) {
    word |= shuffle_xor(word, 1) << 16;
    store = store && unit % 2 == 0;
  }
  if (store) store_exchanged(reinterpret_cast<uint32_t*>(address), word);
}

// The vector by which the slice is multiplied for a batch row. nullptr stands for zeros.
template <typename T>
struct RowVector {
  const T* values = nullptr;
  bool is_exchanged = false;  // other blocks write it while this kernel runs
};

// A lane's part of a row: 16 bytes of each chunk.
template <typename T>
struct LanePart {
  const T* address;  // of the lane's bytes in chunk 0
  int end;           // chunks from this index on are taken as zeros
  bool is_exchanged;

  __device__ const Bits128* at(int chunk) const {
    return reinterpret_cast<const Bits128*>(address + chunk * kPerChunk<T>);
  }
};

// A lane's part of a row of `k_size` values. Other warps load the chunks from `last` on.
template <typename T>
__device__ LanePart<T> lane_part(const RowVector<T>& row, int last, int k_size, int lane) {
  const int skipped = lane % 4 * (kPerChunk<T> / 4);
  const int end = min(last, (k_size - skipped + kPerChunk<T> - 1) / kPerChunk<T>);
  if (!row.values) return {nullptr, 0, false};
  return {row.values + skipped, end, row.is_exchanged};
}

// Polls a piece until it is there, or ends the launch after `wait_limit` milliseconds. The clock is
// read after each load has begun, so that it delays no value.
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

// The values that a lane loads together: its 16 bytes of kChunks chunks of kNTiles rows.
template <typename T, int kChunks, int kNTiles>
struct LoadedChunks {
  Bits128 words[kChunks][kNTiles];

  // Loads kChunks chunks from chunk `begin` on.
  __device__ void load(const LanePart<T> (&lane_parts)[kNTiles], int begin) {
#pragma unroll
    for (int j = 0; j < kNTiles; ++j) {
#pragma unroll
      for (int i = 0; i < kChunks; ++i) {
        words[i][j] = {{0, 0, 0, 0}};
        if (begin + i < lane_parts[j].end)
          words[i][j] = load_exchanged(lane_parts[j].at(begin + i));
      }
    }
  }

  // Waits until every value is there. It polls one missing piece and loads the others after that
  // one: polling all of them would take L2's time from the values that everybody waits for.
  __device__ void wait(const LanePart<T> (&lane_parts)[kNTiles], int begin, uint32_t wait_limit) {
    while (const Bits128* const piece = missing_piece(lane_parts, begin)) {
      await_piece(piece, wait_limit);
      reload_missing(lane_parts, begin);
    }
    __syncwarp();
  }

  // The last piece that is missing, or nullptr.
  __device__ const Bits128* missing_piece(const LanePart<T> (&lane_parts)[kNTiles],
                                          int begin) const {
    const Bits128* piece = nullptr;
#pragma unroll
    for (int j = 0; j < kNTiles; ++j) {
#pragma unroll
      for (int i = 0; i < kChunks; ++i)
        if (lane_parts[j].is_exchanged && is_unwritten(words[i][j]))
          piece = lane_parts[j].at(begin + i);
    }
    return piece;
  }

  // Loads all that is missing, together.
  __device__ void reload_missing(const LanePart<T> (&lane_parts)[kNTiles], int begin) {
#pragma unroll
    for (int j = 0; j < kNTiles; ++j) {
#pragma unroll
      for (int i = 0; i < kChunks; ++i) {
        if (is_unwritten(words[i][j]) && lane_parts[j].is_exchanged)
          words[i][j] = load_exchanged(lane_parts[j].at(begin + i));
      }
    }
  }
};

}  // namespace fastlstm
