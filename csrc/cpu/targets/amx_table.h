// The products of a target that has tiles. The target's source file includes it once, at its end.
#pragma once
#include "cpu/products/split_float32.h"
#include "cpu/targets/kernels.h"

namespace fastlstm::FASTLSTM_ISA {

static void pack_bfloat16(const MatrixRows& matrix, int64_t k_begin, int64_t K,
                          const PanelShape& shape, void* panel) {
  avx512_bf16::bfloat16_gemm.pack(matrix, k_begin, K, shape, panel);
  const int64_t line = 4 * kTileRows * shape.vectors, lines = (K + 1) / 2;
  const int64_t all = (K + kBlockTerms - 1) / kBlockTerms * kTileRows;
  std::memset(static_cast<char*>(panel) + lines * line, 0, (all - lines) * line);
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

const AmxGemms amx_gemms = {SplitFloat32::gemm(FASTLSTM_STRING(FASTLSTM_ISA)), pack_bfloat16,
                            multiply_bfloat16, multiply_int8};

}  // namespace fastlstm::FASTLSTM_ISA
