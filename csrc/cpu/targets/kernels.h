// The kernels of every dtype as tables, one for each target, chosen at run time.
#pragma once
#include <type_traits>

#include "cpu/cell/cell.h"
#include "cpu/dtypes.h"
#include "cpu/products/product.h"
#include "equations/layer_norm_step.h"

namespace fastlstm {

// Units [begin, end) of one row of the stepwise engine.
template <typename T, typename A>
struct RowKernels {
  void (*forward)(const StepForward<T, A>&, int64_t row, int64_t begin, int64_t end);
  void (*backward)(const StepBackward<T, A>&, int64_t row, int64_t begin, int64_t end);
  // Whole rows, with layer normalisation.
  void (*forward_normed)(const NormForward<T, A>&, int64_t row);
  void (*backward_normed)(const NormBackward<T, A>&, int64_t row);
};

template <typename T>
struct Kernels {
  RowKernels<T, State_t<T>> row;
  // Of the tiled engine, or nullptr where the target has no tiles for T.
  const Product<T>* product = nullptr;
  const Cell<T>* cell = nullptr;
};

#define FASTLSTM_MEMBER(T, A, name) Kernels<T> name;
struct KernelTable {
  const char* target;
  FASTLSTM_FOR_EACH_DTYPE(FASTLSTM_MEMBER)
  // Of weights in fewer bits than the layer has.
  const Product<bfloat16>* bfloat16_weights;
  const Product<int8>* int8_weights;
};
#undef FASTLSTM_MEMBER

// Our own kernels for what ATen calls `capability`, with the optional instructions that this
// machine has. On arm64 these are all there is to choose.
KernelTable own_kernels(const char* capability);

// For what this machine has, or less if the environment variable ATEN_CPU_CAPABILITY says so (the
// one that PyTorch's own kernels obey). A library's products in it where they are faster.
const KernelTable& kernel_table();

template <typename T>
const Kernels<T>& kernels();
#define FASTLSTM_KERNELS(T, A, name)   \
  template <>                          \
  inline const Kernels<T>& kernels() { \
    return kernel_table().name;        \
  }
FASTLSTM_FOR_EACH_DTYPE(FASTLSTM_KERNELS)
#undef FASTLSTM_KERNELS

// The product of weights of W. Layers of bfloat16 take it too where their dtype has a product.
template <typename W>
const Product<W>& product_of() {
  if constexpr (std::is_same_v<W, bfloat16>)
    return *kernel_table().bfloat16_weights;
  else if constexpr (std::is_same_v<W, int8>)
    return *kernel_table().int8_weights;
  else
    return *kernels<W>().product;
}

}  // namespace fastlstm
