// The kernel tables: the kernels of every dtype and format, for each target.
#pragma once
#include "cpu/cell/cell.h"
#include "cpu/products/gemm_kernels.h"
#include "equations/layer_norm_step.h"

namespace fastlstm {

// A kernel of the stepwise engine. It computes the units [begin, end) of one row of a step, or the
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
  // For the stepwise engine; nullptr for 16-bit types if the target has no kernels for them.
  RowKernels<T, State_t<T>> row_kernels;
  const CellKernels<T>* cell_kernels;  // for the tiled engine
};

struct KernelTable : Kernels<float>, Kernels<double>, Kernels<bfloat16>, Kernels<float16> {
  const char* target;
  GemmTable gemms;
  int64_t min_rows_to_fuse_input = INT64_MAX;  // see CpuMachine
};

// The GEMM kernels on AMX tiles. A function makes them, because no code of AMX may run when other
// processors load the library.
struct AmxGemms {
  GemmKernels bfloat16x2, bfloat16, int8;
};
namespace amx {
AmxGemms amx_gemms();
}

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
FASTLSTM_DECLARE(neon_dotprod, GemmKernels, int8_gemm)
FASTLSTM_DECLARE(neon_bf16, GemmKernels, bfloat16_gemm)
FASTLSTM_DECLARE(neon_bf16, CellKernels<bfloat16>, bfloat16_cell)
#undef FASTLSTM_DECLARE

// Returns the kernel table of this processor, without AMX. `capability` is ATen's name of the
// instruction set to use ("DEFAULT", "AVX2", "AVX512..."). It has no effect on arm64.
KernelTable kernels_for_machine(const char* capability);

// On x86-64, subnormal results are rounded to zero while an object of this class exists. Arithmetic
// with subnormal numbers is far slower, and two things become subnormal: states that small gates
// multiply at every step, and gradients of long sequences. Subnormal operands keep their value,
// because their product with a large number is not subnormal.
class FlushSubnormals {
#if defined(__x86_64__)
 public:
  FlushSubnormals() { __builtin_ia32_ldmxcsr(mode_ | 0x8000); }
  ~FlushSubnormals() { __builtin_ia32_ldmxcsr(mode_); }

 private:
  const unsigned mode_ = __builtin_ia32_stmxcsr();
#endif
};

// A guard around a thread's products: flushes subnormals, and calls end_thread when it ends.
class ThreadStateGuard {
 public:
  explicit ThreadStateGuard(const GemmKernels& gemm) : end_(gemm.end_thread) {}
  ThreadStateGuard(const ThreadStateGuard&) = delete;
  ~ThreadStateGuard() {
    if (end_) end_();
  }

 private:
  FlushSubnormals flush_subnormals_;
  void (*end_)();
};

}  // namespace fastlstm
