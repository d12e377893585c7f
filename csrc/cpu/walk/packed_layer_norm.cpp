// Layers with layer normalisation whose weights were packed before: the stepwise walk, its products
// with panels.
#include <ATen/Parallel.h>

#include "core/packed.h"
#include "cpu/gemm/encoded_rows.h"
#include "cpu/layer/packed_direction.h"
#include "cpu/step.h"
#include "stepwise/forward.h"

namespace fastlstm {
namespace {

// to = rows W^T. Few rows are bound by reading the panels, so threads share these.
template <typename T, typename W>
void multiply_rows(const Tensor& rows, const Tensor& packed, Tensor& to) {
  const int64_t count = rows.size(0), K = rows.size(1), N = to.size(1);
  const auto matrix = view_packed<W>(packed, N, K, WeightRole::kProjection);
  const EncodedRows<T, W> encoded(count, K);
  const auto a = encoded.encode(row_pointers(const_data<T>(rows), count, K));
  const auto c = row_pointers(data<T>(to), count, N);
  constexpr int64_t kManyRows = 48;
  if (count >= kManyRows) return multiply<W>(a, matrix, c, false, nullptr);
  const int64_t bytes_of_panel = K * matrix.width(0) * sizeof(W) * divide_up(count, 4);
  const int64_t grain = 1 + kernel_table().tuning.bytes_worth_a_thread / (1 + bytes_of_panel);
  at::parallel_for(0, matrix.panel_count(), grain, [&](int64_t begin, int64_t end) {
    const ThreadSeries<W> series;
    multiply_panels<W>(a, count, matrix, {begin, end}, c);
  });
}

struct PackedStepKernels {
  template <class AnyStep>
  static void run(const AnyStep& step) {
    run_step(step);
  }
  static void multiply(const Tensor& rows, const Tensor& w, Tensor& to) {
    switch (w.scalar_type()) {
      case at::kDouble:
        return multiply_rows<double, double>(rows, w, to);
      case at::kFloat:
        return multiply_rows<float, float>(rows, w, to);
      case at::kBFloat16:
        return multiply_rows<float, bfloat16>(rows, w, to);
      case at::kChar:
        return multiply_rows<float, int8>(rows, w, to);
      default:
        TORCH_CHECK(false, "lstm_packed: expected packed weights, got ", w.scalar_type());
    }
  }
};

Direction direction(const Tensor* next, bool projects, const Layer& layer) {
  Direction w;
  w.w_ih = *next++, w.w_hh = *next++, w.b_ih = *next++;
  if (projects) w.w_hr = *next++;
  const int64_t hidden = layer.hidden_size.expect_int();
  const auto check = [&](const Tensor& tensor, int64_t size) {
    const auto state = layer.state_options().dtype().toScalarType();
    TORCH_CHECK(tensor.scalar_type() == state && tensor.dim() == 1 && tensor.numel() == size,
                "lstm_packed: expected a bias or gain of ", state, " and ", size, " elements, got ",
                tensor.scalar_type(), " ", tensor.sizes());
    check_memory(tensor, "a bias or gain");
  };
  for (Tensor* tensor : {&w.gain_ih, &w.gain_hh, &w.gain_c, &w.bias_c}) *tensor = *next++;
  for (const Tensor* tensor : {&w.b_ih, &w.gain_ih, &w.gain_hh}) check(*tensor, 4 * hidden);
  for (const Tensor* tensor : {&w.gain_c, &w.bias_c}) check(*tensor, hidden);
  return w;
}

}  // namespace

PackedResult packed_layer_norm(const LstmCall& call, const Layer& checked, bool save_cells) {
  const auto dtype = call.input.scalar_type();
  Layer layer = dtype == at::kDouble ? checked : as_float(checked);
  const int64_t each = static_cast<int64_t>(call.weights.size()) / layer.num_directions();
  for (int64_t d = 0; d < layer.num_directions(); ++d)
    layer.directions[d] = direction(call.weights.data() + d * each, each == 8, layer);
  const auto run = [&](auto t) {
    using T = decltype(t);
    return stepwise_forward<T, T, PackedStepKernels>(layer, save_cells, /*save_gates=*/false);
  };
  const auto [output, h_n, c_n, cells, gates] = dtype == at::kDouble ? run(double()) : run(float());
  return {output.to(dtype), h_n.to(dtype), c_n, cells};
}

}  // namespace fastlstm
