// Zoneout: a share of the state before stays. The cell equations apply it to h and c, given the
// shares; where h is projected, the projection applies it to the projected h.
#pragma once
#include "core/operators.h"
#include "cpu/cell/cell.h"
#include "cpu/layer/rows.h"

namespace fastlstm {

// The shares of one direction, by flat rows, and what they let through of dL/dh.
template <typename T>
class ZoneoutShares {
  using A = State_t<T>;

 public:
  ZoneoutShares(const Layer& layer, int64_t d)
      : h_(layer.zoneout_h), c_(layer.zoneout_c), first_(d * layer.flat_rows.expect_int()) {}

  bool of_h() const { return static_cast<bool>(h_); }
  const T* h(int64_t flat) const { return h_.at(first_ + flat); }
  const T* c(int64_t flat) const { return c_.at(first_ + flat); }

  // Backward: dL/dh_t that the step after, or at last the first step, let through to h before it.
  void keep_gradients(int64_t batch, const at::TensorOptions& state_options) {
    kept_dh_ = at::zeros({h_ ? batch : 0, h_.size()}, state_options);
  }
  A* kept_dh(int64_t batch_index) const {
    return h_ ? data<A>(kept_dh_) + batch_index * h_.size() : nullptr;
  }

 private:
  MaskRows<T> h_, c_;
  int64_t first_;
  Tensor kept_dh_;
};

}  // namespace fastlstm
