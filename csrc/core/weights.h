// The weights of one direction by name, and the list in which an op takes them. The table below is
// the only place in C++ that knows the order of that list, and what shape a weight has.
#pragma once
#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

namespace fastlstm {

using at::Tensor;

// Undefined if absent. Matrices may be prepacked (cpu/gemm/prepacked.h).
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
  std::vector<Direction> directions(std::vector<Tensor> weights, int64_t count) const;
};

// The size of a weight, or of a row, along a dimension. A vector has no columns.
enum class Extent { kNone, kGates, kInput, kHidden, kOutput, kOutputs, kProjection };

// A weight in the list, what has to be there for it, its shape, and what backward makes of it.
struct NamedWeight {
  const char* name;
  Tensor Direction::* tensor;
  bool WeightLayout::* is_there;
  Extent rows, columns = Extent::kNone;

  bool is_matrix() const { return columns != Extent::kNone; }
  // b_hh has b_ih's.
  bool has_gradient() const { return tensor != &Direction::b_hh; }
};
constexpr NamedWeight kWeights[] = {
    {"W_ih", &Direction::w_ih, &WeightLayout::matrices, Extent::kGates, Extent::kInput},
    {"W_hh", &Direction::w_hh, &WeightLayout::matrices, Extent::kGates, Extent::kOutput},
    {"b_ih", &Direction::b_ih, &WeightLayout::bias, Extent::kGates},
    {"b_hh", &Direction::b_hh, &WeightLayout::bias, Extent::kGates},
    {"W_hr", &Direction::w_hr, &WeightLayout::projects, Extent::kProjection, Extent::kHidden},
    {"gain_ih", &Direction::gain_ih, &WeightLayout::normalizes, Extent::kGates},
    {"gain_hh", &Direction::gain_hh, &WeightLayout::normalizes, Extent::kGates},
    {"gain_c", &Direction::gain_c, &WeightLayout::normalizes, Extent::kHidden},
    {"bias_c", &Direction::bias_c, &WeightLayout::normalizes, Extent::kHidden},
};

// visit(tensor, name) for the weights that a direction has.
void for_each_weight(auto& direction, const auto& visit) {
  for (const NamedWeight& weight : kWeights)
    if ((direction.*weight.tensor).defined()) visit(direction.*weight.tensor, weight.name);
}
// visit(weight) for each that a layout has, in the order of the list.
void for_each_weight_of(const WeightLayout& layout, const auto& visit) {
  for (const NamedWeight& weight : kWeights)
    if (layout.*weight.is_there) visit(weight);
}
// Appends the gradients of a direction, by the names of their weights, in the order of the list.
inline void append_gradients(std::vector<Tensor>& list, const Direction& gradients) {
  for (const NamedWeight& weight : kWeights)
    if (weight.has_gradient() && (gradients.*weight.tensor).defined())
      list.push_back(gradients.*weight.tensor);
}

}  // namespace fastlstm
