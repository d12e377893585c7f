// The weights of one direction by name, and the list in which an op takes them. The table below is
// the only place in C++ that knows the order of that list.
#pragma once
#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

namespace fastlstm {

using at::Tensor;

// Undefined if absent. Matrices may be packed (cpu/layer/packed_direction.h).
struct Direction {
  Tensor w_ih;        // [4H,I]
  Tensor w_hh;        // [4H,P]
  Tensor b_ih, b_hh;  // [4H]
  Tensor w_hr;        // [P,H] the projection
  // Layer normalization (layer_norm_step.h); the biases are those of the norms too.
  Tensor gain_ih, gain_hh;  // [4H]
  Tensor gain_c, bias_c;    // [H]
};

// What a list holds for each direction. An op is told by words, in this order: "bias", "projection"
// and "layer_norm" where there are such weights, and the format of matrices that are packed.
struct WeightLayout {
  bool matrices = true, bias = false, projects = false, normalizes = false;
  std::string format;  // empty: tensors of the layer's dtype

  static WeightLayout of(c10::string_view words);
  int64_t each() const;  // how many weights a direction has
  // b_ih and b_hh are only ever added, and share one.
  int64_t gradients() const { return each() - bias; }
  std::vector<Direction> directions(at::TensorList weights, int64_t count) const;
};

// The weights in the order of the list, and what has to be there for each.
struct NamedWeight {
  const char* name;
  Tensor Direction::* tensor;
  bool WeightLayout::* is_there;
};
constexpr NamedWeight kWeights[] = {
    {"W_ih", &Direction::w_ih, &WeightLayout::matrices},
    {"W_hh", &Direction::w_hh, &WeightLayout::matrices},
    {"b_ih", &Direction::b_ih, &WeightLayout::bias},
    {"b_hh", &Direction::b_hh, &WeightLayout::bias},
    {"W_hr", &Direction::w_hr, &WeightLayout::projects},
    {"gain_ih", &Direction::gain_ih, &WeightLayout::normalizes},
    {"gain_hh", &Direction::gain_hh, &WeightLayout::normalizes},
    {"gain_c", &Direction::gain_c, &WeightLayout::normalizes},
    {"bias_c", &Direction::bias_c, &WeightLayout::normalizes},
};

// visit(tensor, name) for the weights that a direction has.
void for_each_weight(auto& direction, const auto& visit) {
  for (const NamedWeight& weight : kWeights)
    if ((direction.*weight.tensor).defined()) visit(direction.*weight.tensor, weight.name);
}
// visit(name) for each weight of a direction, in the order of the list.
void for_each_name(const WeightLayout& layout, const auto& visit) {
  for (const NamedWeight& weight : kWeights)
    if (layout.*weight.is_there) visit(std::string_view(weight.name));
}

}  // namespace fastlstm
