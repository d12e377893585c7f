// The instruction set that the compiler uses without flags; vec.h has all of it.
#pragma once
#include "cpu/vec.h"

namespace fastlstm::FASTLSTM_ISA {

struct Target {
  static constexpr int tile_rows = 2, tile_vectors = 4;
  static constexpr int int8_tile_rows = 2;
  static constexpr bool fetches_next_panels = false;
  static constexpr bool rows_of_16_bits = false;
};
using DotProduct = PlainDotProduct;

}  // namespace fastlstm::FASTLSTM_ISA
