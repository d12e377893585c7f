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
    return {forward<T, A>, backward<T, A>, forward_normed<T, A>, backward_normed<T, A>};
}

template <typename T>
constexpr Product<T> product = tile_product<Target::tile_rows, Target::tile_vectors, T, T>();
template <typename T>
constexpr Cell<T> cell = {prefetch_forward<T>, prefetch_backward<T>, forward_cells<T, State_t<T>>,
                          backward_cells<T, State_t<T>>};

// Of each format of weights.
template <typename W>
constexpr Product<W> weights = product<W>;
template <>
constexpr Product<bfloat16> weights<bfloat16> =
    with_rounding(forward_product<Target::tile_rows, Target::tile_vectors, bfloat16, float>());
template <>
constexpr Product<int8> weights<int8> =
    int8_product<Target::int8_tile_rows, Target::tile_vectors, DotProduct>();

#define FASTLSTM_ADDRESS(W, name, unpacked, bits, group) &weights<W>,
const KernelTable table = {FASTLSTM_STRING(FASTLSTM_ISA),
                           {row_kernels<float, float>(), &product<float>, &cell<float>},
                           {row_kernels<double, double>(), &product<double>, &cell<double>},
                           {row_kernels<bfloat16, float>(), nullptr, &cell<bfloat16>},
                           {row_kernels<float16, float>(), nullptr, &cell<float16>},
                           {FASTLSTM_FOR_EACH_FORMAT(FASTLSTM_ADDRESS)}};
#undef FASTLSTM_ADDRESS

}  // namespace fastlstm::FASTLSTM_ISA
