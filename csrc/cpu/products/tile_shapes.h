// From the rows and vectors of a register tile at run time to template arguments.
#pragma once
#include <cstdint>

#include "equations/elementary.h"

namespace fastlstm::FASTLSTM_ISA {

template <int N>
struct Int {
  static constexpr int value = N;
};

// body(Int<count>) for least <= count <= most.
template <int most, int least = 1, typename Body>
FASTLSTM_INLINE void with_count(int64_t count, const Body& body) {
  if (count == most)
    body(Int<most>());
  else if constexpr (most > least)
    with_count<most - 1, least>(count, body);
}

// body(Int<R>, first row) for tiles of at most `most` rows, as even as they can be.
template <int most, typename Body>
FASTLSTM_INLINE void for_row_tiles(int64_t rows, const Body& body) {
  const int64_t tiles = (rows + most - 1) / most;
  for (int64_t i = 0, first = 0; i < tiles; ++i) {
    const int64_t count = rows / tiles + (i < rows % tiles);
    with_count<most>(count, [&](auto R) { body(R, first); });
    first += count;
  }
}

}  // namespace fastlstm::FASTLSTM_ISA
