// The projection of a step in ATen: h_t = W_hr (o tanh(c)).
#pragma once
#include "core/flat_rows.h"

namespace fastlstm::stepwise {

class Projection {
 public:
  Projection(const Layer& layer, int64_t d)
      : w_hr_(layer.directions[d].w_hr), live_(live_mask(layer)) {}

  // From unprojected [rows,H] into the step's outputs y_t and the state h_t [rows,P].
  template <typename Products>
  void forward(const WalkStep& at, const Tensor& unprojected, const Tensor& y_t,
               const Tensor& h_t) const {
    Tensor projected = at::empty_like(h_t);
    Products::multiply(unprojected, w_hr_, projected);
    const bool all_live = !live_.defined();
    y_t.copy_(all_live ? projected : projected.masked_fill(live_[at.t].logical_not(), 0));
    h_t.copy_(all_live ? projected : at::where(live_[at.t], projected, h_t));
  }

  // dL/d(o tanh(c)) of a step into d_unprojected [rows,H]. dh_t [rows,P] enters as dL/dh_t from the
  // steps after and leaves as zeros, but of a row that has ended; d_projected [rows,P] gets
  // dL/dh_t, which W_hr's gradient needs.
  void backward(const WalkStep& at, const Tensor& dy_t, const Tensor& dh_t, Tensor d_projected,
                Tensor d_unprojected) const {
    Tensor total = dy_t.defined() ? dh_t + dy_t : dh_t.clone();
    if (live_.defined()) total.masked_fill_(live_[at.t].logical_not(), 0);
    d_projected.copy_(total);
    at::mm_out(d_unprojected, total, w_hr_);
    if (live_.defined())
      dh_t.masked_fill_(live_[at.t], 0);
    else
      dh_t.zero_();
  }

 private:
  Tensor w_hr_, live_;
};

}  // namespace fastlstm::stepwise
