// A single step with packed weights. Reading the weights once bounds it; with small weights the
// overhead of the call does.
#pragma once
#include <algorithm>
#include <vector>

#include "cpu/gemm/encoded_rows.h"
#include "cpu/layer/packed_direction.h"
#include "cpu/stages/cells.h"
#include "cpu/walk/threads.h"

namespace fastlstm {

// A dense batch of one step, for one direction.
template <typename T, typename W>
class PackedStep {
  using A = State_t<T>;

 public:
  PackedStep(const Sizes& sizes, const PackedDirection<W>& w, const T* x, const T* h_prev,
             const A* c_prev, T* h, int64_t h_stride, A* c)
      : s_(sizes),
        w_(w),
        grid_{threads(), 1},
        h_rows_(row_pointers(h, s_.batch, h_stride)),
        encoded_x_(s_.batch, s_.input_size),
        encoded_h_(s_.batch, s_.output_size),
        x_(encode(encoded_x_, x, s_.input_size)),
        h_prev_(encode(encoded_h_, h_prev, s_.output_size)) {
    for (int64_t k = 0; k < grid_.threads(); ++k) cells_.emplace_back(s_.hidden_size);
    if (w_.w_hr) unprojected_ = scratch<T>(s_.batch * s_.hidden_size);
    for (int64_t b = 0; b < s_.batch; ++b)
      rows_.push_back({nullptr, nullptr, c_prev + b * s_.hidden_size, c + b * s_.hidden_size,
                       w_.w_hr ? data<T>(unprojected_) + b * s_.hidden_size : h_rows_[b]});
  }

  void run() {
    if (s_.batch == 0) return;  // libraries refuse empty products
    walk_steps<W>(grid_, 1, {0, 1}, w_.w_hr ? 2 : 1,
                  [&](int64_t, int64_t, int64_t phase, const Member& member) {
                    if (phase == 0)
                      multiply(cells_[member.index], member.unit_group);
                    else
                      project(w_.w_hr->share(member.unit_group, grid_.unit_groups));
                  });
  }

 private:
  // Below this many bytes of weights, waking another thread costs more than it helps.
  int64_t threads() const {
    const int64_t bytes = (w_.w_ih.size() + w_.w_hh.size()) * sizeof(W);
    const int64_t most = at::in_parallel_region() ? 1 : at::get_num_threads();
    const int64_t rows_in_tiles = divide_up(s_.batch, 4);
    return std::clamp<int64_t>(bytes * rows_in_tiles / kernel_table().tuning.bytes_worth_a_thread,
                               1, std::min<int64_t>(most, divide_up(s_.hidden_size, 16)));
  }

  std::vector<const W*> encode(const EncodedRows<T, W>& encoded, const T* rows, int64_t K) const {
    std::vector<const W*> places(s_.batch);
    for (int64_t b = 0; b < s_.batch; ++b) places[b] = encoded.encode(rows + b * K, b);
    return places;
  }

  void multiply(CellsForward<T, W>& cells, int64_t unit_group) {
    const typename CellsForward<T, W>::Input input{w_.w_ih, w_.bias, x_.data()};
    cells.run(w_.w_hh, cells.tiles(unit_group, grid_.unit_groups), h_prev_.data(), rows_.data(),
              s_.batch, nullptr, &input);
  }

  void project(const Range& panels) const {
    const EncodedRows<T, W> encoded(s_.batch, s_.hidden_size);
    multiply_panels(encode(encoded, const_data<T>(unprojected_), s_.hidden_size), s_.batch,
                    *w_.w_hr, panels, h_rows_);
  }

  const Sizes& s_;
  const PackedDirection<W>& w_;
  const ThreadGrid grid_;
  const std::vector<T*> h_rows_;
  const EncodedRows<T, W> encoded_x_, encoded_h_;
  const std::vector<const W*> x_, h_prev_;
  std::vector<CellsForward<T, W>> cells_;
  Tensor unprojected_;
  std::vector<ForwardRow<T>> rows_;
};

}  // namespace fastlstm
