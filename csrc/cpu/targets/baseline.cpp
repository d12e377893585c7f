// The target of the compiler's default instruction set: vec.h, with vectors of 16 bytes.
#if !defined(__aarch64__)
#define FASTLSTM_ISA baseline
#define FASTLSTM_VECTOR_BYTES 16
#include "cpu/vec.h"

namespace fastlstm::baseline {

struct Target {
  static constexpr int tile_rows = 2, tile_vectors = 4;
  static constexpr int int8_tile_rows = 2;
  static constexpr bool has_16_bit_row_kernels = false;
};
using DotProduct = PlainDotProduct;

}  // namespace fastlstm::baseline
#include "cpu/targets/kernels_table.h"
#endif
