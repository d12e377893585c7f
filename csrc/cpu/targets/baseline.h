// Whatever the compiler takes for the baseline of the processor, all by the text of vec.h.
#pragma once
#include "cpu/targets/vec.h"

namespace fastlstm {
namespace FASTLSTM_ISA {

struct Target {
  static constexpr int tile_rows = 2, tile_vectors = 4;
  static constexpr int int8_tile_rows = 2;
  static constexpr int prefetch_rows = 2;  // of tiles that fetch their panel ahead
};
using DotProduct = PlainDotProduct;

}  // namespace FASTLSTM_ISA
}  // namespace fastlstm
