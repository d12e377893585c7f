// The GEMM kernels of a target that has AMX tiles. The target's source file includes this one once.
#pragma once
#include "cpu/products/split_float32.h"
#include "cpu/targets/kernels.h"

namespace fastlstm::FASTLSTM_ISA {

// Packs like AVX512_BF16, and pads K with zeros to a multiple of kBlockTerms.
static void pack_bfloat16(const MatrixRows& matrix, int64_t k_begin, int64_t K,
                          const PanelShape& shape, void* panel) {
  avx512_bf16::bfloat16_gemm.pack(matrix, k_begin, K, shape, panel);
  const int64_t bytes_per_pair = 4 * kTileRows * shape.vectors, pairs = (K + 1) / 2;
  const int64_t padded_pairs = (K + kBlockTerms - 1) / kBlockTerms * kTileRows;
  std::memset(static_cast<char*>(panel) + pairs * bytes_per_pair, 0,
              (padded_pairs - pairs) * bytes_per_pair);
}

static void multiply_bfloat16(const PanelProduct& p) {
  if (p.prefetch) p.prefetch->fetch();
  multiply_panel<bfloat16>(
      p, 2 * p.k_begin, 2 * p.K, 0,
      p.c_is_16_bit ? avx512_bf16::bfloat16_gemm.put_rows : put_rows<float, float>);
}

static void multiply_int8(const PanelProduct& p) {
  const GemmKernels& gemm = avx512_vnni::int8_gemm;
  const int64_t bytes = gemm.encoded_bytes(p.K) - kInt8RowHeader;
  multiply_panel<int8_t>(p, kInt8RowHeader, bytes, gemm.header_bytes * p.shape.vectors * kTileRows,
                         gemm.put_rows);
}

AmxGemms amx_gemms() {
  AmxGemms gemms{SplitFloat32::gemm(), avx512_bf16::bfloat16_gemm, avx512_vnni::int8_gemm};
  const auto move_to_tiles = [&](GemmKernels& gemm) {
    gemm.tile_rows = gemms.bfloat16x2.tile_rows;
    gemm.end_thread = Amx::release, gemm.instruction_set = FASTLSTM_STRING(FASTLSTM_ISA);
  };
  move_to_tiles(gemms.bfloat16), move_to_tiles(gemms.int8);
  gemms.bfloat16.k_multiple = kBlockTerms;
  gemms.bfloat16.pack = pack_bfloat16, gemms.bfloat16.multiply = multiply_bfloat16;
  gemms.bfloat16.min_rows_per_panel_load = 2 * gemms.bfloat16.tile_rows;
  gemms.bfloat16.bytes_ahead = 256 << 10, gemms.bfloat16.max_rows_in_place = 5;
  gemms.bfloat16.panels_at_once = gemms.int8.panels_at_once = 1;
  gemms.int8.multiply = multiply_int8;
  gemms.int8.few_rows_gemm = &avx512_vnni::int8_gemm, gemms.int8.few_rows_limit = 8;
  return gemms;
}

}  // namespace fastlstm::FASTLSTM_ISA
