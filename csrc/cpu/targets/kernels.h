// The kernels of every dtype as tables, one for each target, chosen at run time.
#pragma once
#include "cpu/cell/cell.h"
#include "cpu/dtypes.h"
#include "cpu/plan.h"
#include "cpu/products/product.h"
#include "equations/layer_norm_step.h"

namespace fastlstm {

// Units [begin, end) of one row of a step of the stepwise engine, or the row if kWholeRows.
template <typename S>
struct RowKernel {
  void (*run)(const S& step, int64_t row, int64_t begin, int64_t end);
};
template <typename T, typename A>
struct RowKernels : RowKernel<StepForward<T, A>>,
                    RowKernel<StepBackward<T, A>>,
                    RowKernel<NormForward<T, A>>,
                    RowKernel<NormBackward<T, A>> {};

template <typename T>
struct Kernels {
  // Functions are nullptr where the target converts 16 bits to float32 for the stepwise engine.
  RowKernels<T, State_t<T>> row;
  const Cell<T>* cell = nullptr;  // of the tiled engine
};

#define FASTLSTM_MEMBER(T, A, name) Kernels<T> name;
struct KernelTable {
  const char* target;
  FASTLSTM_FOR_EACH_DTYPE(FASTLSTM_MEMBER)
  Products products;
  int64_t rows_beside_h = INT64_MAX;  // as of CpuMachine
};
#undef FASTLSTM_MEMBER

// The products on AMX's tiles: float32, and the panels of our own products of bfloat16 and int8.
struct TileProducts {
  Product bfloat16x2;
  decltype(Product::pack) pack_bfloat16;
  decltype(Product::multiply) multiply_bfloat16, multiply_int8;
};

// The products of AVX512_BF16 and AVX512_VNNI, whose panels are multiplied on tiles.
Product bfloat16_on_tiles(const TileProducts& tiles);
Product int8_on_tiles(const TileProducts& tiles);

// The tables of the targets, and of optional instructions.
#define FASTLSTM_DECLARE(target, type, name) \
  namespace target {                         \
  extern const type name;                    \
  }
FASTLSTM_DECLARE(baseline, KernelTable, table)
FASTLSTM_DECLARE(avx2, KernelTable, table)
FASTLSTM_DECLARE(avx512, KernelTable, table)
FASTLSTM_DECLARE(neon, KernelTable, table)
FASTLSTM_DECLARE(avx_vnni, Product, int8_weights)
FASTLSTM_DECLARE(avx512_vnni, Product, int8_weights)
FASTLSTM_DECLARE(avx512_bf16, Product, product)
FASTLSTM_DECLARE(avx512_bf16, Cell<bfloat16>, cell)
FASTLSTM_DECLARE(amx, TileProducts, tiles)
FASTLSTM_DECLARE(neon_dotprod, Product, int8_weights)
FASTLSTM_DECLARE(neon_bf16, Product, product)
FASTLSTM_DECLARE(neon_bf16, Cell<bfloat16>, cell)
#undef FASTLSTM_DECLARE

// Our own kernels for one of ATen's capabilities, with the optional instructions of this machine.
// On arm64 only these optional ones are chosen.
KernelTable own_kernels(const char* capability);

// The kernels for this machine, or for less if the environment variable ATEN_CPU_CAPABILITY says
// so, as with PyTorch's own kernels.
const KernelTable& kernel_table();

// This machine with the threads that a call may use now, for the planner.
CpuMachine cpu_machine();

template <typename T>
const Kernels<T>& kernels();
#define FASTLSTM_KERNELS(T, A, name)   \
  template <>                          \
  inline const Kernels<T>& kernels() { \
    return kernel_table().name;        \
  }
FASTLSTM_FOR_EACH_DTYPE(FASTLSTM_KERNELS)
#undef FASTLSTM_KERNELS

// Processors compute far more slowly with subnormal numbers, and the states
// behind shut gates and the gradients of long sequences become such numbers. Meanwhile a subnormal
// result is zero; operands may be subnormal, since a product with a large number is not.
class FlushSubnormals {
#if defined(__x86_64__)
 public:
  FlushSubnormals() { __builtin_ia32_ldmxcsr(mode_ | 0x8000); }
  ~FlushSubnormals() { __builtin_ia32_ldmxcsr(mode_); }

 private:
  const unsigned mode_ = __builtin_ia32_stmxcsr();
#endif
};

// A guard around a thread's products, of which tiles keep a context. Nothing within may throw.
class ThreadSeries {
 public:
  explicit ThreadSeries(const Product& product) : end_(product.end_thread) {}
  ThreadSeries(const ThreadSeries&) = delete;
  ~ThreadSeries() {
    if (end_) end_();
  }

 private:
  FlushSubnormals flush_subnormals_;
  void (*end_)();
};

}  // namespace fastlstm
