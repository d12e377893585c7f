// The products of a step and the cells after them, for some rows and units, in one thread. A tile
// of sums at a time goes through a buffer in the L1 cache.
#pragma once
#include <algorithm>
#include <vector>

#include "cpu/cell/cell.h"
#include "cpu/layer/packed_direction.h"
#include "cpu/targets/kernels.h"

namespace fastlstm {

template <typename T>
class CellsForward {
  using A = State_t<T>;

 public:
  CellsForward(const CpuPlan& plan, int64_t hidden_size)
      : product_(*plan.product),
        fetches_next_panels_(plan.fetches_next_panels),
        hidden_size_(hidden_size),
        x_sums_(product_, rows_at_a_time(), 4 * tiles_for(1)),
        sums_(product_, rows_at_a_time(), 4 * tiles_for(1)) {}

  // A tile is a vector of units; the tiles of one of `groups` groups of threads.
  Range tiles(int64_t group, int64_t groups) const {
    return part_of(divide_up(hidden_size_, product_.lanes), group, groups);
  }

  // Rows whose h_prev is `zeros` have nothing to multiply. With rows x of the input, the x_gates of
  // the rows are computed, else (nullptr) read.
  void run(const PackedDirection& weights, const Range& tiles, const void* const* x,
           const void* const* h_prev, const ForwardRow<T>* rows, int64_t count, const void* zeros) {
    const PackedMatrix &w_ih = weights.w_ih, &w_hh = weights.w_hh;
    const int64_t at_once = tiles_for(count), turns = divide_up(tiles.end - tiles.begin, at_once);
    backwards_ = !backwards_;
    const auto tiles_of = [&](int64_t turn) {
      const int64_t first = tiles.begin + (backwards_ ? turns - 1 - turn : turn) * at_once;
      return Range{first, std::min(first + at_once, tiles.end)};
    };
    // With several tiles of rows there is time to load the panels of the next turn.
    const bool fetches = count > product_.rows && fetches_next_panels_;
    for (int64_t i = 0; i < turns; ++i) {
      const auto [begin, end] = tiles_of(i);
      const Range panels = panels_of(w_hh, {begin, end});
      NextPanels next_h{}, next_x{}, *fetch_h = nullptr, *fetch_x = nullptr;
      if (fetches && i + 1 < turns) {
        const Range after = tiles_of(i + 1);
        next_h = w_hh.memory(panels_of(w_hh, after)), fetch_h = &next_h;
        if (x) next_x = w_ih.memory(panels_of(w_ih, after)), fetch_x = &next_x;
      }
      for (int64_t r = 0; r < count; r += sums_.rows()) {
        const int64_t some = std::min(sums_.rows(), count - r);
        const A* from_x = x ? multiply_input(weights, {begin, end}, x + r, some, fetch_x) : nullptr;
        for (int64_t t = begin; t < end; ++t) cell_.prefetch_forward(rows + r, some, units(t));
        auto* h = static_cast<const A*>(
            sums_.multiply(w_hh, panels, h_prev + r, some, w_hh.K(), zeros, nullptr, fetch_h));
        for (int64_t t = begin; t < end; ++t) {
          cell_.forward(rows + r, some, {h, sums_.stride(), from_x}, units(t));
          h += 4 * product_.lanes, from_x += x ? 4 * product_.lanes : 0;
        }
      }
    }
  }

 private:
  // The calls around the product of 12 short rows take a few percent of its time. Of long rows 12
  // are better.
  int64_t rows_at_a_time() const {
    constexpr int64_t kShort = 1024;  // bytes
    return round_up(product_.bytes(hidden_size_) <= kShort ? 48 : 12, product_.rows);
  }
  int64_t tiles_for(int64_t rows) const {
    return std::max<int64_t>(product_.panels_for(rows) * product_.vectors / 4, 1);
  }
  static Range panels_of(const PackedMatrix& weights, const Range& tiles) {
    const int64_t in_tile = 4 / weights.product().vectors;
    return {tiles.begin * in_tile, tiles.end * in_tile};
  }
  Units units(int64_t tile) const {
    const int64_t unit = tile * product_.lanes;
    return {unit, std::min<int64_t>(product_.lanes, hidden_size_ - unit), hidden_size_};
  }

  const A* multiply_input(const PackedDirection& weights, const Range& tiles, const void* const* x,
                          int64_t count, NextPanels* next) {
    const Range panels = panels_of(weights.w_ih, tiles);
    const int64_t column = weights.w_ih.panels()[panels.begin].first_column;
    const A* const bias = weights.bias.defined() ? const_data<A>(weights.bias) + column : nullptr;
    return static_cast<const A*>(
        x_sums_.multiply(weights.w_ih, panels, x, count, product_.piece, nullptr, bias, next));
  }

  const Product& product_;
  const bool fetches_next_panels_;
  const Cell<T>& cell_ = *kernels<T>().cell;
  int64_t hidden_size_;
  bool backwards_ = true;  // every other step: what was read last is still in the L2 cache
  PanelSums x_sums_, sums_;
};

// The rows of one step of the walk back that one thread has.
template <typename T>
struct StepRows {
  explicit StepRows(int64_t most) : d_gates_next(most), d_h(most), cells(most) {}
  std::vector<const void*> d_gates_next;  // of the step after, or `zeros` where none comes back
  std::vector<void*> d_h;                 // with a projection, dL/dh_t in full, of T
  std::vector<BackwardRow<T>> cells;
  int64_t count = 0;
};

template <typename T>
class CellsBackward {
  using A = State_t<T>;

 public:
  CellsBackward(const Product& product, int64_t hidden_size)
      : product_(product),
        hidden_size_(hidden_size),
        sums_(product, round_up(kRows, product.rows), product.vectors * product.panels_for(1)) {}

  // `to_cells` takes the rows `from` to dL/d(o tanh(c)): W_hh and d_gates of the next step, or W_hr
  // and dL/dh_t.
  void run(const PackedMatrix& to_cells, const Range& panels, const void* const* from,
           const BackwardRow<T>* rows, int64_t count, const void* zeros) {
    backwards_ = !backwards_;
    const auto through = [&](const auto& group) {
      const Range some_panels{group.first, group.first + group.count};
      const Units units{group.shape.first_column, group.shape.columns, hidden_size_};
      for (int64_t r = 0; r < count; r += sums_.rows()) {
        const int64_t some = std::min(sums_.rows(), count - r);
        cell_.prefetch_backward(rows + r, some, units);
        const auto* const sums = static_cast<const A*>(
            sums_.multiply(to_cells, some_panels, from + r, some, kPieceOfPanel, zeros));
        cell_.backward(rows + r, some, sums, sums_.stride(), units);
      }
    };
    to_cells.for_groups(panels, count, through, backwards_);
  }

 private:
  // A panel is cut along k so that a piece stays in the L2 cache while all rows pass.
  static constexpr int64_t kRows = 96, kPieceOfPanel = 1024;

  const Product& product_;
  const Cell<T>& cell_ = *kernels<T>().cell;
  int64_t hidden_size_;
  bool backwards_ = true;  // as in CellsForward
  PanelSums sums_;
};

}  // namespace fastlstm
