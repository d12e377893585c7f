// Fills GemmKernels. Included once for each target.
#pragma once
#include "cpu/products/unpacked.h"

namespace fastlstm::FASTLSTM_ISA {

// GEMM kernels for weights of T, with sums of A, in tiles of at most R rows x V vectors. If not
// `trains`, they are only for prepacked weights and for weights in place; make_training_gemm adds
// the kernels for training. Weights of float16 have no panels.
template <int R, int V, typename T, bool trains = false, typename A = State_t<T>>
static constexpr GemmKernels make_gemm() {
  static_assert(4 % V == 0, "the four gates of a vector of units are whole panels");
  GemmKernels gemm{};
  gemm.format = gemm.source_format = format_of(dtype_of_type<T>);
  gemm.element_bits = 8 * sizeof(T), gemm.sum_dtype = dtype_of_type<A>;
  gemm.lanes = Vec<A>::lanes, gemm.tile_rows = R, gemm.max_vectors = V;
  gemm.relative_speed = 4.0 / sizeof(T);
  gemm.panels_at_once = kColumnsAtOnce / (V * gemm.lanes);
  gemm.instruction_set = FASTLSTM_STRING(FASTLSTM_ISA);
  // Every tile of rows transposes the matrix again. AVX-512 has registers for tiles of 8 rows, and
  // its squares are so large that one vector of columns at a time keeps it busy.
  constexpr bool is_avx512 = sizeof(Vec<A>) == 64;
  constexpr int kRows = is_avx512 ? 8 : R, kVectors = is_avx512 ? 1 : 2;
  gemm.multiply_unpacked_columns = multiply_unpacked_columns<kRows, kVectors, T, A>;
  gemm.unpacked_vectors_of_one_row = kVectors;
  if constexpr (std::is_same_v<T, float16>) {
    gemm.max_rows_in_place = R;  // each tile of rows converts its own terms
  } else {
    gemm.pack = pack<T>, gemm.unpack = unpack<T, 1>;
    gemm.multiply = multiply<R, V, T, A, trains>;
  }
  return gemm;
}

template <int R, int V, typename T, typename A = State_t<T>>
static constexpr GemmKernels make_training_gemm() {
  GemmKernels gemm = make_gemm<R, V, T, /*trains=*/true>();
  if constexpr (sizeof(T) < sizeof(A)) gemm.put_rows = put_rows<A, T>;
  gemm.multiply_unpacked_rows = multiply_unpacked_rows<R, V, T, A>;
  gemm.transpose = transpose<T>, gemm.sum_rows = sum_rows<T, A>;
  if (sizeof(T) == 8) gemm.bytes_ahead = 3 << 17;  // limits the peak memory
  return gemm;
}

// Changes kernels of bfloat16 so that they also take rows of float32, which are rounded.
static constexpr GemmKernels with_rounding(GemmKernels gemm) {
  gemm.k_multiple = 2, gemm.unpack = unpack<bfloat16, 2>;
  gemm.encode = encode_bfloat16, gemm.encoded_bytes = bytes_of_pairs;
  return gemm;
}

}  // namespace fastlstm::FASTLSTM_ISA
