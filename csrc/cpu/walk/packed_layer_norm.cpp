// Layers with layer normalization whose weights were packed before: the stepwise walk, its products
// with panels.
#include <ATen/Parallel.h>

#include "cpu/gemm/encoded_rows.h"
#include "cpu/layer/packed_direction.h"
#include "cpu/step.h"
#include "cpu/walk/tiled.h"
#include "stepwise/forward.h"

namespace fastlstm {
namespace {

// to = rows W^T. Few rows are bound by reading the panels, so threads share these.
template <typename A>
void multiply_rows(const Tensor& rows, const Tensor& packed, Tensor& to) {
  const int64_t count = rows.size(0), K = rows.size(1), N = to.size(1);
  const Product& product = product_named(PackedHeader::of(packed).format.name);
  TORCH_CHECK(product.sums == dtype_of_rows<A>,
              "lstm_packed: expected rows that go with the weights, got ", rows.scalar_type());
  const auto matrix = view_packed(product, packed, N, K, /*by_gates=*/false);
  const EncodedRows<A> encoded(product, count, K);
  const auto a = encoded.encode(row_pointers(const_data<A>(rows), count, K));
  const auto c = row_pointers(data<A>(to), count, N);
  constexpr int64_t kManyRows = 48;
  if (count >= kManyRows) return multiply(a, matrix, c, false);
  const int64_t bytes_of_panel = matrix.width(0) * product.bytes(K) * divide_up(count, 4);
  const int64_t grain = 1 + kBytesWorthAThread / (1 + bytes_of_panel);
  at::parallel_for(0, matrix.panel_count(), grain, [&](int64_t begin, int64_t end) {
    const ThreadSeries series(product);
    multiply_panels(a, count, matrix, {begin, end}, c);
  });
}

struct PackedStepKernels : CpuSteps {
  static void multiply(const Tensor& rows, const Tensor& w, Tensor& to) {
    if (rows.scalar_type() == at::kDouble)
      multiply_rows<double>(rows, w, to);
    else
      multiply_rows<float>(rows, w, to);
  }
};

}  // namespace

PackedResult packed_layer_norm(const Layer& given, bool save_cells) {
  const auto dtype = given.input.scalar_type();
  const Layer layer = dtype == at::kDouble ? given : as_float(given);
  const auto run = [&](auto t) {
    using T = decltype(t);
    return stepwise_forward<T, T, PackedStepKernels>(layer, save_cells, /*save_gates=*/false);
  };
  const auto [output, h_n, c_n, cells, gates] = dtype == at::kDouble ? run(double()) : run(float());
  return {output.to(dtype), h_n.to(dtype), c_n.to(given.c_0.scalar_type()), cells};
}

}  // namespace fastlstm
