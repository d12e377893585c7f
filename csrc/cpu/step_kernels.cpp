#include "step_kernels.h"

#include <ATen/Parallel.h>
#include <ATen/Version.h>

#include <algorithm>
#include <string>

namespace fastlstm {

namespace baseline {
extern const RowKernelTable table;
}
#if defined(__x86_64__)
namespace avx2 {
extern const RowKernelTable table;
}
namespace avx512 {
extern const RowKernelTable table;
}
#endif

namespace {

struct Choice {
  const char* name;
  const RowKernelTable* table;
};

Choice choose() {
#if defined(__x86_64__)
  const std::string capability = at::get_cpu_capability();
  if (capability.rfind("AVX512", 0) == 0) return {"avx512", &avx512::table};
  if (capability == "AVX2") return {"avx2", &avx2::table};
#endif
  return {"default", &baseline::table};
}

const Choice& choice() {
  static const Choice chosen = choose();
  return chosen;
}

const RowKernels<float, float>& kernels(float) { return choice().table->f32; }
const RowKernels<double, double>& kernels(double) { return choice().table->f64; }
const RowKernels<bfloat16, float>& kernels(bfloat16) { return choice().table->bf16; }
const RowKernels<float16, float>& kernels(float16) { return choice().table->f16; }

// Rows are cut into pieces, so that one long row keeps several threads busy too.
constexpr int64_t kUnitsPerPiece = 256, kPiecesPerThread = 8;

template <typename StepType, typename Kernel>
void for_all_pieces(const StepType& step, Kernel kernel) {
  const int64_t pieces = (step.hidden_size + kUnitsPerPiece - 1) / kUnitsPerPiece;
  at::parallel_for(0, step.rows * pieces, kPiecesPerThread, [&](int64_t first, int64_t last) {
    for (int64_t k = first; k < last; ++k) {
      const int64_t begin = k % pieces * kUnitsPerPiece;
      kernel(step, k / pieces, begin, std::min(begin + kUnitsPerPiece, step.hidden_size));
    }
  });
}

}  // namespace

const char* cpu_capability() { return choice().name; }

template <typename T, typename A>
void step_forward(const StepForward<T, A>& step) {
  for_all_pieces(step, kernels(T()).forward);
}

template <typename T, typename A>
void step_backward(const StepBackward<T, A>& step) {
  for_all_pieces(step, kernels(T()).backward);
}

#define FASTLSTM_INSTANTIATE(T, A)                        \
  template void step_forward(const StepForward<T, A>&);   \
  template void step_backward(const StepBackward<T, A>&);
FASTLSTM_INSTANTIATE(float, float)
FASTLSTM_INSTANTIATE(double, double)
FASTLSTM_INSTANTIATE(bfloat16, float)
FASTLSTM_INSTANTIATE(float16, float)

}  // namespace fastlstm
