// Gates that forward did not save, recomputed: the products and cells of a step on the rows of many
// steps at once, since every h_{t-1} is known; their c and h are discarded. The bits are those of
// the walk, unless the walk ran in float32 on 16-bit input: there h was not rounded, here it
// is.
#pragma once
#include <ATen/Parallel.h>

#include <algorithm>
#include <type_traits>
#include <vector>

#include "cpu/products/thread_series.h"
#include "cpu/stages/cells.h"
#include "op/layer.h"

namespace fastlstm {

template <typename T>
class GateRecomputation {
  using A = State_t<T>;

 public:
  explicit GateRecomputation(const Direction& w)
      : hidden_size_(w.w_ih.size(0) / 4),
        w_ih_(pack_transposed<T>(w.w_ih.contiguous(), 1)),
        w_hh_(pack_gates<T>(w.w_hh.contiguous())) {
    const auto state = state_dtype(w.w_ih.scalar_type());
    if (w.b_ih.defined()) bias_ = w.b_ih.to(state) + w.b_hh.to(state);
  }

  // Rows x [I] and h_prev [P] into rows of activated gates [4H].
  void forward(const std::vector<const T*>& x, const std::vector<const T*>& h_prev,
               const std::vector<T*>& gates, const T* zeros) const {
    const int64_t rows = gates.size();
    Tensor sums;
    std::vector<A*> x_gates;
    if constexpr (std::is_same_v<T, A>) {
      x_gates = gates;
    } else {
      sums = scratch<A>(rows * 4 * hidden_size_);
      x_gates = row_pointers(data<A>(sums), rows, 4 * hidden_size_);
    }
    multiply<T>(x, w_ih_, x_gates, false, bias_.defined() ? const_data<A>(bias_) : nullptr);
    constexpr int64_t kWorthAThread = 1 << 17;  // multiply-adds
    const int64_t grain = 1 + kWorthAThread / (4 * hidden_size_ * hidden_size_);
    at::parallel_for(0, rows, grain, [&](int64_t first, int64_t last) {
      const ThreadSeries<T> series;
      const std::vector<A> c_prev(hidden_size_, A(0));
      std::vector<A> c(hidden_size_);
      std::vector<T> h(hidden_size_);
      std::vector<ForwardRow<T>> cell_rows;
      for (int64_t r = first; r < last; ++r)
        cell_rows.push_back({x_gates[r], gates[r], c_prev.data(), c.data(), h.data()});
      CellsForward<T> cells(hidden_size_);
      cells.run(w_hh_, cells.tiles(0, 1), &h_prev[first], cell_rows.data(), last - first, zeros);
    });
  }

 private:
  int64_t hidden_size_;
  PackedMatrix<T> w_ih_, w_hh_;
  Tensor bias_;
};

}  // namespace fastlstm
