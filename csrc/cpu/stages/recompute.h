// Gates that forward did not save, recomputed: the products and cells of a step on the rows of many
// steps at once, since every h_{t-1} is known; their c and h are discarded. The bits are those of
// the walk.
#pragma once
#include <ATen/Parallel.h>

#include <vector>

#include "cpu/gemm/encoded_rows.h"
#include "cpu/stages/cells.h"

namespace fastlstm {

// Rows x [I] and h_prev [P] into rows of activated gates [4H].
template <typename T>
void recompute_gates(const CpuPlan& plan, const PackedDirection& weights, const Sizes& sizes,
                     const std::vector<const T*>& x, const std::vector<const T*>& h_prev,
                     const std::vector<T*>& gates, const T* zeros) {
  using A = State_t<T>;
  const int64_t rows = gates.size(), hidden = sizes.hidden_size;
  const EncodedRows<T> encoded_x(*plan.product, rows, sizes.input_size);
  const EncodedRows<T> encoded_h(*plan.product, rows, sizes.output_size);
  const auto x_rows = encoded_x.encode(x);
  auto h_rows = encoded_h.encode(h_prev);
  const void* const encoded_zeros = encoded_h.zeros(zeros);
  for (int64_t r = 0; r < rows; ++r)
    if (h_prev[r] == zeros) h_rows[r] = encoded_zeros;
  const int64_t grain = 1 + kRowsWorthAThread / (4 * hidden * hidden);
  at::parallel_for(0, rows, grain, [&](int64_t first, int64_t last) {
    const ThreadSeries series(*plan.product);
    const std::vector<A> c_prev(hidden, A(0));
    std::vector<A> c(hidden);
    std::vector<T> h(hidden);
    std::vector<ForwardRow<T>> cell_rows;
    for (int64_t r = first; r < last; ++r)
      cell_rows.push_back({nullptr, gates[r], c_prev.data(), c.data(), h.data()});
    CellsForward<T> cells(plan, hidden);
    cells.run(weights, cells.tiles(0, 1), &x_rows[first], &h_rows[first], cell_rows.data(),
              last - first, encoded_zeros);
  });
}

}  // namespace fastlstm
