// The kernel table of one target: included once by its source file, which sets the instruction set
// and FASTLSTM_ISA before any include, and includes its header first.
#pragma once
#include "cpu/cell/cell_kernels.h"
#include "cpu/cell/row_kernels.h"
#include "cpu/products/packing.h"
#include "cpu/products/tiles.h"
#include "cpu/products/unpacked.h"
#include "cpu/targets/kernels.h"

#define FASTLSTM_STRING_(x) #x
#define FASTLSTM_STRING(x) FASTLSTM_STRING_(x)

namespace fastlstm {
namespace FASTLSTM_ISA {

template <typename T, typename A>
static constexpr RowKernels<T, A> row_kernels() {
  return {forward<T, A>, backward<T, A>, forward_normed<T, A>, backward_normed<T, A>};
}

// Products by tiles of at most R x V.
template <int R, int V, typename T, typename A>
static constexpr Product<T> tile_product() {
  static_assert(4 % V == 0, "the four gates of a vector of units are whole panels");
  return {Vec<A>::lanes,
          R,
          V,
          pack,
          multiply<R, V, T, A, A>,
          multiply_and_fetch<R, V, T, A>,
          multiply<R, V, T, A, T>,
          put_rows<T, A, A>,
          put_rows<T, A, T>,
          multiply_unpacked<R, T, A>,
          transpose,
          sum_rows<T, A>};
}

template <typename T>
constexpr Product<T> product = tile_product<Target::tile_rows, Target::tile_vectors, T, T>();
template <typename T>
constexpr Cell<T> cell = {prefetch_forward<T>, prefetch_backward<T>, forward_cells<T, T>,
                          backward_cells<T, T>};

extern const KernelTable table;
const KernelTable table = {FASTLSTM_STRING(FASTLSTM_ISA),
                           {row_kernels<float, float>(), &product<float>, &cell<float>},
                           {row_kernels<double, double>(), &product<double>, &cell<double>},
                           {row_kernels<bfloat16, float>()},
                           {row_kernels<float16, float>()}};

}  // namespace FASTLSTM_ISA
}  // namespace fastlstm
