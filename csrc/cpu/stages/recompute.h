// Gates that forward did not save, recomputed: the products and cells of a step on the rows of many
// steps at once, since every h_{t-1} is known; their c and h are discarded. The bits are those of
// the walk.
#pragma once
#include <ATen/Parallel.h>

#include <vector>

#include "cpu/layer/packed_direction.h"
#include "cpu/stages/cells.h"

namespace fastlstm {

template <typename T, typename W>
class GateRecomputation {
  using A = State_t<T>;

 public:
  GateRecomputation(const Layer& layer, int64_t d, int64_t chunk_rows)
      : hidden_size_(layer.hidden_size.expect_int()),
        weights_(pack_direction<T, W>(layer, d, 1)),
        encoded_x_(chunk_rows, layer.input_size.expect_int()),
        encoded_h_(chunk_rows, layer.output_size.expect_int()) {}

  // Rows x [I] and h_prev [P] into rows of activated gates [4H].
  void forward(const std::vector<const T*>& x, const std::vector<const T*>& h_prev,
               const std::vector<T*>& gates, const T* zeros) const {
    auto h_rows = encoded_h_.encode(h_prev);
    const W* const encoded_zeros = encoded_h_.zeros(zeros);
    for (size_t r = 0; r < h_prev.size(); ++r)
      if (h_prev[r] == zeros) h_rows[r] = encoded_zeros;
    const int64_t rows = gates.size();
    const auto x_rows = encoded_x_.encode(x);
    const int64_t grain =
        1 + kernel_table().tuning.rows_worth_a_thread / (4 * hidden_size_ * hidden_size_);
    at::parallel_for(0, rows, grain, [&](int64_t first, int64_t last) {
      const ThreadSeries<W> series;
      const std::vector<A> c_prev(hidden_size_, A(0));
      std::vector<A> c(hidden_size_);
      std::vector<T> h(hidden_size_);
      std::vector<ForwardRow<T>> cell_rows;
      for (int64_t r = first; r < last; ++r)
        cell_rows.push_back({nullptr, gates[r], c_prev.data(), c.data(), h.data()});
      CellsForward<T, W> cells(hidden_size_);
      const typename CellsForward<T, W>::Input input{weights_.w_ih, weights_.bias, &x_rows[first]};
      cells.run(weights_.w_hh, cells.tiles(0, 1), &h_rows[first], cell_rows.data(), last - first,
                encoded_zeros, &input);
    });
  }

 private:
  int64_t hidden_size_;
  PackedDirection<W> weights_;
  EncodedRows<T, W> encoded_x_, encoded_h_;
};

}  // namespace fastlstm
