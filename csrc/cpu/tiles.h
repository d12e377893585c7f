// How many rows and vectors of columns a register tile holds, and the step from those numbers at
// run time to template arguments.
#pragma once
#include <cstdint>

#include "../elementary.h"

namespace fastlstm {
namespace FASTLSTM_ISA {

#if FASTLSTM_VECTOR_BYTES == 64
constexpr int kRows = 6;  // 32 registers: 6 x 4 sums, 4 vectors of the panel, a broadcast
#else
constexpr int kRows = 2;  // 16 registers: 2 x 4 sums, 4 vectors of the panel, a broadcast
#endif

template <int N>
struct Int {
  static constexpr int value = N;
};

// body(Int<R>, first row) for tiles of at most kRows rows, as even as they can be.
template <typename Body>
FASTLSTM_HD void for_row_tiles(int64_t rows, const Body& body) {
  const int64_t tiles = (rows + kRows - 1) / kRows;
  for (int64_t i = 0, first = 0; i < tiles; ++i) {
    const int64_t count = rows / tiles + (i < rows % tiles);
    switch (count) {
      case 1:
        body(Int<1>(), first);
        break;
      case 2:
        body(Int<2>(), first);
        break;
#if FASTLSTM_VECTOR_BYTES == 64
      case 3:
        body(Int<3>(), first);
        break;
      case 4:
        body(Int<4>(), first);
        break;
      case 5:
        body(Int<5>(), first);
        break;
      case 6:
        body(Int<6>(), first);
        break;
#endif
    }
    first += count;
  }
}

template <typename Body>
FASTLSTM_HD void with_vectors(int64_t vectors, const Body& body) {
  switch (vectors) {
    case 1:
      body(Int<1>());
      break;
    case 2:
      body(Int<2>());
      break;
    case 3:
      body(Int<3>());
      break;
    case 4:
      body(Int<4>());
      break;
  }
}

}  // namespace FASTLSTM_ISA
}  // namespace fastlstm
