// Zoneout as the kernels of a step see it.
#pragma once
#include "core/flat_rows.h"
#include "equations/lstm_params.h"
#include "pointers.h"

namespace fastlstm::stepwise {

// After a projection h is zoned out by the walk itself.
class ZoneoutRows {
 public:
  explicit ZoneoutRows(const Layer& layer) {
    if (!layer.zones_out()) return;
    none_ = at::zeros({layer.hidden_size.expect_int()}, layer.input.options());
    if (!layer.projects()) h_ = contiguous_or_undefined(layer.zoneout_h);
    c_ = contiguous_or_undefined(layer.zoneout_c);
  }
  template <typename T>
  Zoneout<T> at(int64_t d, const WalkStep& at) const {
    if (!none_.defined()) return {};
    const auto rows = [&](const Tensor& shares) {
      const Tensor found = shares.defined() ? rows_of_step(shares, d, at) : none_;
      return const_data<T>(found);
    };
    const int64_t stride = none_.size(0);
    return {rows(h_), rows(c_), h_.defined() ? stride : 0, c_.defined() ? stride : 0};
  }
  template <typename T>
  Zoneout<T> all(int64_t d) const {  // from the first flat row on
    return at<T>(d, {0, 0, 1, 0, 0});
  }

 private:
  Tensor none_, h_, c_;
};

}  // namespace fastlstm::stepwise
