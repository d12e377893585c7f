// The gradients of the weights of many single steps: one product of the rows of them all.
#include "cpu/gemm/packed_matrix.h"
#include "cpu/stages/weight_gradients.h"
#include "cpu/walk/tiled.h"

namespace fastlstm {

template <typename T, typename W>
std::vector<Tensor> step_gradients(const std::vector<StepFactors>& steps) {
  std::vector<const T*> x, h_prev, d_gates;
  const auto append = [](std::vector<const T*>& rows, const Tensor& of_step) {
    for (int64_t r = 0; r < of_step.size(1); ++r)
      rows.push_back(const_data<T>(of_step) + r * of_step.size(2));
  };
  std::vector<Tensor> contiguous;  // lives as long as the rows
  for (const StepFactors& step : steps) {
    append(x, contiguous.emplace_back(step.input.contiguous()));
    append(h_prev, contiguous.emplace_back(step.h_0.contiguous()));
    append(d_gates, contiguous.emplace_back(step.d_gates.contiguous()));
  }
  const int64_t rows = d_gates.size(), hidden = steps[0].h_0.size(2);
  const Sizes sizes{1, 1, rows, rows, steps[0].input.size(2), hidden, hidden};
  const auto state = steps[0].d_gates.options().dtype(state_dtype(steps[0].d_gates.scalar_type()));
  WeightGradients<T, W> gradients(sizes, /*has_bias=*/true, state, rows);
  gradients.add(d_gates, gradients.encode(d_gates), std::move(x), std::move(h_prev), false);
  return gradients.all();
}

#define FASTLSTM_INSTANTIATE(T, W) \
  template std::vector<Tensor> step_gradients<T, W>(const std::vector<StepFactors>&);
FASTLSTM_FOR_EACH_PRODUCT(FASTLSTM_INSTANTIATE)

}  // namespace fastlstm
