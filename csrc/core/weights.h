// The weights of one direction by name, and the list in which the op takes them: the only place in
// C++ that knows the order of that list.
#pragma once
#include <ATen/core/Tensor.h>

#include <optional>

namespace fastlstm {

using at::Tensor;

// Undefined if absent.
struct Direction {
  Tensor w_ih;        // [4H,I]
  Tensor w_hh;        // [4H,P]
  Tensor b_ih, b_hh;  // [4H]
  Tensor w_hr;        // [P,H] the projection
  // Layer normalisation (layer_norm_step.h); the biases are those of the norms too.
  Tensor gain_ih, gain_hh;  // [4H]
  Tensor gain_c, bias_c;    // [H]

  // visit(tensor, name) in the order of the list.
  template <typename Visit>
  void for_each(const Visit& visit) {
    visit(w_ih, "W_ih"), visit(w_hh, "W_hh"), visit(b_ih, "b_ih"), visit(b_hh, "b_hh");
    visit(w_hr, "W_hr"), visit(gain_ih, "gain_ih"), visit(gain_hh, "gain_hh");
    visit(gain_c, "gain_c"), visit(bias_c, "bias_c");
  }
  template <typename Visit>
  void for_each(const Visit& visit) const {
    const_cast<Direction*>(this)->for_each(
        [&](const Tensor& tensor, const char* name) { visit(tensor, name); });
  }
};

// What a list holds for each direction: W_ih, W_hh, then b_ih, b_hh, then W_hr, then gain_ih,
// gain_hh, gain_c, bias_c, where there are such.
struct WeightLayout {
  bool bias, projects, normalizes;

  // Nothing if no layer has so many weights.
  static std::optional<WeightLayout> of(int64_t count, int64_t directions) {
    const int64_t each = directions > 0 ? count / directions : 0;
    if (each * directions != count || each < 2 || each > 9) return std::nullopt;
    const int64_t plain = each >= 6 ? each - 4 : each;
    return WeightLayout{plain >= 4, plain % 2 == 1, each >= 6};
  }
  int64_t each() const { return 2 + 2 * bias + projects + 4 * normalizes; }
  // b_ih and b_hh are only ever added, and share one.
  int64_t gradients() const { return each() - bias; }

  Direction direction(at::TensorList weights, int64_t d) const {
    const Tensor* next = weights.data() + d * each();
    Direction w;
    w.w_ih = *next++, w.w_hh = *next++;
    if (bias) w.b_ih = *next++, w.b_hh = *next++;
    if (projects) w.w_hr = *next++;
    if (normalizes)
      for (Tensor* tensor : {&w.gain_ih, &w.gain_hh, &w.gain_c, &w.bias_c}) *tensor = *next++;
    return w;
  }
};

}  // namespace fastlstm
