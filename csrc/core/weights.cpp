#include "core/weights.h"

#include <algorithm>
#include <string_view>
#include <utility>

namespace fastlstm {

WeightLayout WeightLayout::of(c10::string_view words) {
  std::string_view remaining(words.data(), words.size());
  const auto take_word = [&remaining](std::string_view word) {
    if (remaining.substr(0, remaining.find(' ')) != word) return false;
    remaining.remove_prefix(std::min(word.size() + 1, remaining.size()));
    return true;
  };
  WeightLayout layout;
  layout.bias = take_word("bias"), layout.projects = take_word("projection");
  layout.normalizes = take_word("layer_norm"), layout.format = remaining;
  return layout;
}

int64_t WeightLayout::weights_per_direction() const {
  return std::count_if(std::begin(kWeights), std::end(kWeights),
                       [this](const NamedWeight& weight) { return this->*weight.is_there; });
}

std::vector<Direction> WeightLayout::directions(std::vector<Tensor> weights, int64_t count) const {
  if (static_cast<int64_t>(weights.size()) != count * weights_per_direction()) {
    std::string names;
    for (const NamedWeight& weight : kWeights)
      if (this->*weight.is_there) names.append(weight.name).append(", ");
    TORCH_CHECK(false, "lstm: expected weights to hold ", names, "as layout says, for each of ",
                count, " direction(s) (h_0.size(0)), got ", weights.size(), " tensors");
  }
  std::vector<Direction> directions(count);
  auto next = weights.begin();
  for (Direction& direction : directions)
    for (const NamedWeight& weight : kWeights)
      if (this->*weight.is_there) direction.*weight.tensor = std::move(*next++);
  return directions;
}

}  // namespace fastlstm
