// The kernel tables: for each target the kernels of every dtype. One table is chosen at run time
// (cpu/kernels.h).
#pragma once
#include "cpu/cell/cell.h"
#include "cpu/dtypes.h"
#include "cpu/plan.h"
#include "cpu/products/gemm_kernels.h"
#include "equations/layer_norm_step.h"

namespace fastlstm {

// A kernel of the stepwise engine: computes the units [begin, end) of one row of a step, or the
// whole row if S::kWholeRows.
template <typename S>
struct RowKernel {
  void (*run)(const S& step, int64_t row, int64_t begin, int64_t end);
};
template <typename T, typename A>
struct RowKernels : RowKernel<ForwardStep<T, A>>,
                    RowKernel<BackwardStep<T, A>>,
                    RowKernel<ProjectionForwardStep<T, A>>,
                    RowKernel<ProjectionBackwardStep<T, A>>,
                    RowKernel<NormForwardStep<T, A>>,
                    RowKernel<NormBackwardStep<T, A>> {};

template <typename T>
struct Kernels {
  // The functions are nullptr for 16-bit types if the target converts these to float32 for the
  // stepwise engine.
  RowKernels<T, State_t<T>> row;
  const CellKernels<T>* cell = nullptr;  // for the tiled engine
};

#define FASTLSTM_MEMBER(T, A, name) Kernels<T> name;
struct KernelTable {
  const char* target;
  FASTLSTM_FOR_EACH_DTYPE(FASTLSTM_MEMBER)
  GemmTable gemms;
  int64_t min_rows_to_fuse_input = INT64_MAX;  // see CpuMachine
};
#undef FASTLSTM_MEMBER

// The products on AMX tiles. bfloat16 and int8 have the panels of the products of AVX512_BF16 and
// AVX512_VNNI, so only some functions of these products are replaced.
struct AmxGemms {
  GemmKernels bfloat16x2;                     // float32
  decltype(GemmKernels::pack) pack_bfloat16;  // pads K with zeros to a multiple of 32
  decltype(GemmKernels::multiply) multiply_bfloat16, multiply_int8;
};

// The products of AVX512_BF16 and AVX512_VNNI, with micro-kernels on AMX tiles.
GemmKernels amx_bfloat16_gemm(const AmxGemms& amx);
GemmKernels amx_int8_gemm(const AmxGemms& amx);

// The tables of the targets, and of optional instructions.
#define FASTLSTM_DECLARE(target, type, name) \
  namespace target {                         \
  extern const type name;                    \
  }
FASTLSTM_DECLARE(baseline, KernelTable, table)
FASTLSTM_DECLARE(avx2, KernelTable, table)
FASTLSTM_DECLARE(avx512, KernelTable, table)
FASTLSTM_DECLARE(neon, KernelTable, table)
FASTLSTM_DECLARE(avx_vnni, GemmKernels, int8_gemm)
FASTLSTM_DECLARE(avx512_vnni, GemmKernels, int8_gemm)
FASTLSTM_DECLARE(avx512_bf16, GemmKernels, bfloat16_gemm)
FASTLSTM_DECLARE(avx512_bf16, CellKernels<bfloat16>, bfloat16_cell)
FASTLSTM_DECLARE(amx, AmxGemms, amx_gemms)
FASTLSTM_DECLARE(neon_dotprod, GemmKernels, int8_gemm)
FASTLSTM_DECLARE(neon_bf16, GemmKernels, bfloat16_gemm)
FASTLSTM_DECLARE(neon_bf16, CellKernels<bfloat16>, bfloat16_cell)
#undef FASTLSTM_DECLARE

// The kernels for one of ATen's capabilities, with the optional instructions of this machine. On
// arm64 the capability has no effect, only the optional instructions are chosen.
KernelTable kernels_for_machine(const char* capability);

// While an object of this class exists, a subnormal result is rounded to zero. Processors compute
// far more slowly with subnormal numbers, and the states behind shut gates and the gradients of
// long sequences become such numbers. Operands may still be subnormal, because their product with a
// large number is not.
class FlushSubnormals {
#if defined(__x86_64__)
 public:
  FlushSubnormals() { __builtin_ia32_ldmxcsr(mode_ | 0x8000); }
  ~FlushSubnormals() { __builtin_ia32_ldmxcsr(mode_); }

 private:
  const unsigned mode_ = __builtin_ia32_stmxcsr();
#endif
};

// A guard around a series of products of a thread. While it exists, subnormal results are rounded
// to zero. At its end it calls Product::end_thread, which releases the thread's AMX tiles if the
// product uses them. Code under the guard must not throw.
class ThreadSeries {
 public:
  explicit ThreadSeries(const GemmKernels& gemm) : end_(gemm.end_thread) {}
  ThreadSeries(const ThreadSeries&) = delete;
  ~ThreadSeries() {
    if (end_) end_();
  }

 private:
  FlushSubnormals flush_subnormals_;
  void (*end_)();
};

}  // namespace fastlstm
