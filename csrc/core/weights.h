#pragma once
#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

namespace fastlstm {

using at::Tensor;

// The weights of one direction. A weight that the layer does not have is an undefined tensor. Gates
// are in the order i, f, g, o. The matrices may be prepacked (cpu/gemm/prepacked.h).
struct Direction {
  Tensor w_ih;        // [4H,I]
  Tensor w_hh;        // [4H,P]
  Tensor b_ih, b_hh;  // [4H]
  Tensor w_hr;        // [P,H] the projection
  // Layer normalization (layer_norm_step.h), which uses b_ih and b_hh too.
  Tensor gain_ih, gain_hh;  // [4H]
  Tensor gain_c, bias_c;    // [H]
};

// Which weights a call has for each direction. An op takes the layout as a string of words in this
// order: "bias", "projection" and "layer_norm" if there are such weights, then the format of
// prepacked matrices. For example "bias int8".
struct WeightLayout {
  bool matrices = true;  // W_ih and W_hh, which every layer has
  bool bias = false, projects = false, normalizes = false;
  std::string format;  // the format of prepacked matrices; empty if they are not prepacked

  static WeightLayout of(c10::string_view words);
  int64_t weights_per_direction() const;
  // Divides a list of weights among `count` directions.
  std::vector<Direction> directions(std::vector<Tensor> weights, int64_t count) const;
};

// The size of a dimension: kGates is 4H, kInput I, kHidden H, kOutput P, kAllOutputs D * P.
// kProjection is P too, but messages call it proj_size. A vector has kNone columns.
enum class Extent { kNone, kGates, kInput, kHidden, kOutput, kAllOutputs, kProjection };

struct NamedWeight {
  const char* name;
  Tensor Direction::* tensor;
  bool WeightLayout::* is_there;         // whether a call has this weight
  Extent rows, columns = Extent::kNone;  // its shape

  bool is_matrix() const { return columns != Extent::kNone; }
  // The gradients of b_ih and b_hh are equal, so backward returns only the gradient of b_ih.
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

void for_each_weight(auto& direction, const auto& visit) {
  for (const NamedWeight& weight : kWeights)
    if ((direction.*weight.tensor).defined()) visit(direction.*weight.tensor, weight.name);
}
// Appends `gradients` in the order of kWeights. gradients.w_ih is the gradient of w_ih, and so on.
inline void append_gradients(std::vector<Tensor>& list, const Direction& gradients) {
  for (const NamedWeight& weight : kWeights)
    if (weight.has_gradient() && (gradients.*weight.tensor).defined())
      list.push_back(gradients.*weight.tensor);
}

}  // namespace fastlstm
