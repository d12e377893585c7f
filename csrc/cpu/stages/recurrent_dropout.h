// Recurrent dropout: W_hh sees h_mask * h_{t-1}, with one mask for all steps of a row.
#pragma once
#include <ATen/Parallel.h>

#include <vector>

#include "cpu/dtypes.h"
#include "cpu/layer/rows.h"
#include "cpu/scratch.h"

namespace fastlstm {

template <typename T>
class RecurrentDropout {
  using A = State_t<T>;

 public:
  // Room for `count` masked rows at once, of one direction.
  RecurrentDropout(const Layer& layer, const Rows& rows, int64_t d, int64_t count)
      : rows_(rows), masks_(layer.h_mask), first_(d * rows.batch()) {
    if (masks_) masked_ = scratch<T>(count * masks_.size());
  }
  explicit operator bool() const { return static_cast<bool>(masks_); }

  const T* mask(int64_t row) const { return masks_.at(first_ + rows_.batch_index(row)); }

  // h_prev of a row as W_hh sees it, in the index-th place.
  const T* forward(const T* h_prev, int64_t row, int64_t index) const {
    if (!masks_) return h_prev;
    const T* const share = mask(row);
    T* const to = data<T>(masked_) + index * masks_.size();
    for (int64_t n = 0; n < masks_.size(); ++n) to[n] = T(A(h_prev[n]) * A(share[n]));
    return to;
  }

  // The same for the rows of a chunk, in place, for W_hh's gradient. row_of[r] is the row of r.
  void forward(std::vector<const T*>& h_prev, const std::vector<int64_t>& row_of) const {
    if (!masks_) return;
    at::parallel_for(0, h_prev.size(), 1 + (1 << 15) / masks_.size(), [&](int64_t r, int64_t last) {
      for (; r < last; ++r) h_prev[r] = forward(h_prev[r], row_of[r], r);
    });
  }

 private:
  const Rows& rows_;
  MaskRows<T> masks_;
  int64_t first_;
  Tensor masked_;
};

}  // namespace fastlstm
