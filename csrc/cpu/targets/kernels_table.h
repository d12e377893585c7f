// The kernel table of one target: included once by its source file, which sets the instruction set
// and FASTLSTM_ISA before any include, and includes its header first.
#pragma once
#include "cpu/cell/cell_kernels.h"
#include "cpu/cell/row_kernels.h"
#include "cpu/products/tile_product.h"
#include "cpu/products/tiles_int8.h"
#include "cpu/targets/kernels.h"

namespace fastlstm::FASTLSTM_ISA {

template <typename T, typename A>
static constexpr RowKernels<T, A> row_kernels() {
  if constexpr (sizeof(T) == 2 && !Target::rows_of_16_bits)
    return {};
  else
    return {run_row<StepForward<T, A>>, run_row<StepBackward<T, A>>, run_row<NormForward<T, A>>,
            run_row<NormBackward<T, A>>};
}

template <typename T>
constexpr Cell<T> cell = {prefetch_forward<T>, prefetch_backward<T>, forward_cells<T, State_t<T>>,
                          backward_cells<T, State_t<T>>};

constexpr int kRows = Target::tile_rows, kVectors = Target::tile_vectors;
constexpr Product float32 = tile_product<kRows, kVectors, float, float>(Format::float32);
constexpr Product float64 = tile_product<kRows, kVectors, double, double>(Format::float64);
constexpr Product pairs =
    with_rounding(forward_product<kRows, kVectors, bfloat16, float>(Format::bfloat16));
constexpr Product fours = int8_product<Target::int8_tile_rows, kVectors, DotProduct>();

const KernelTable table = {FASTLSTM_STRING(FASTLSTM_ISA),
                           {row_kernels<float, float>(), &cell<float>},
                           {row_kernels<double, double>(), &cell<double>},
                           {row_kernels<bfloat16, float>(), &cell<bfloat16>},
                           {row_kernels<float16, float>(), &cell<float16>},
                           {&float32, &float64, &pairs, &fours}};

}  // namespace fastlstm::FASTLSTM_ISA
