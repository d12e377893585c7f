// Included last by kernels_*.cpp: everything compiled for one instruction set, as one table.
#include "kernels.h"
#include "packing_kernels.h"
#include "row_kernels.h"
#include "tiled_kernels.h"
#include "unpacked_kernels.h"

#define FASTLSTM_STRING_(x) #x
#define FASTLSTM_STRING(x) FASTLSTM_STRING_(x)

namespace fastlstm {
namespace FASTLSTM_ISA {

template <typename A>
static constexpr TiledKernels<A, A> tiled_kernels() {
  return {Vec<A>::lanes,     kRows,
          pack<A>,           transpose<A>,
          multiply<A, A, A>, multiply_unpacked<A, A>,
          multiply<A, A, A>, sum_rows<A, A>,
          forward<A, A>,     backward<A, A>};
}

template <typename T, typename A>
static constexpr RowKernels<T, A> row_kernels() {
  return {forward<T, A>, backward<T, A>, forward_normed<T, A>, backward_normed<T, A>};
}

extern const KernelTable table;
const KernelTable table = {FASTLSTM_STRING(FASTLSTM_ISA), row_kernels<float, float>(),
                           row_kernels<double, double>(), row_kernels<bfloat16, float>(),
                           row_kernels<float16, float>(), tiled_kernels<float>(),
                           tiled_kernels<double>()};

}  // namespace FASTLSTM_ISA
}  // namespace fastlstm
