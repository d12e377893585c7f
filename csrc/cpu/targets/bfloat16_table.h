// The kernels for bfloat16. A target with dot products of pairs includes them after its overloads.
#pragma once
#include "cpu/cell/cell_kernels.h"
#include "cpu/products/make_gemm.h"
#include "cpu/targets/kernels.h"

namespace fastlstm::FASTLSTM_ISA {

const GemmKernels bfloat16_gemm =
    with_rounding(make_training_gemm<Target::tile_rows, Target::tile_vectors, bfloat16>());
const CellKernels<bfloat16> bfloat16_cell = cell_kernels<bfloat16>;

}  // namespace fastlstm::FASTLSTM_ISA
