// A call of an op as one value, and the weights of a direction by name. The dispatcher takes every
// argument by itself, in the order of the schema, which is that of `list` of these structs.
#pragma once
#include <ATen/core/Tensor.h>

#include <optional>
#include <string>
#include <tuple>
#include <vector>

namespace fastlstm {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

// The weights of one direction, undefined if absent. Matrices may be prepacked
// (cpu/gemm/prepacked.h).
struct Direction {
  Tensor w_ih;        // [4H,I]
  Tensor w_hh;        // [4H,P]
  Tensor b_ih, b_hh;  // [4H]
  Tensor w_hr;        // [P,H] the projection
  // Layer normalization (layer_norm_step.h); the biases are those of the norms too.
  Tensor gain_ih, gain_hh;  // [4H]
  Tensor gain_c, bias_c;    // [H]
};

// The weights that a list holds for each direction. An op takes it in words, in this order: "bias",
// "projection" and "layer_norm" where there are such weights, and the format of prepacked matrices.
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

// Shapes: layer.h.
struct LstmCall {
  Tensor input, h_0, c_0;
  std::vector<Tensor> weights;
  std::string layout;  // which weights there are: WeightLayout
  OptionalTensor batch_sizes = {}, lengths = {}, reset = {}, h_mask = {};

  bool is_prepacked() const { return !WeightLayout::of(layout).format.empty(); }
  auto list() const {
    return std::tie(input, h_0, c_0, weights, layout, batch_sizes, lengths, reset, h_mask);
  }
};

// visit(tensor, name) for the tensors that a call has beside its weights.
void for_each_tensor(auto& call, const auto& visit) {
  visit(call.input, "input"), visit(call.h_0, "h_0"), visit(call.c_0, "c_0");
  const auto visit_option = [&](auto& option, const char* name) {
    if (option) visit(*option, name);
  };
  visit_option(call.batch_sizes, "batch_sizes"), visit_option(call.lengths, "lengths");
  visit_option(call.reset, "reset"), visit_option(call.h_mask, "h_mask");
}

struct ForwardOptions {
  bool save_cells, save_gates;
  std::string engine;
  auto list() const { return std::tie(save_cells, save_gates, engine); }
};

// The gradients that are requested besides those of the weights; per_row: see BackwardResult.
struct GradientRequest {
  bool input, state, per_row;
};

struct BackwardArguments {
  OptionalTensor grad_output, grad_h_n, grad_c_n, grad_cells;
  Tensor output, cells, gates;  // saved
  GradientRequest request;
  std::string engine;
  auto list() const {
    return std::tie(grad_output, grad_h_n, grad_c_n, grad_cells, output, cells, gates,
                    request.input, request.state, request.per_row, engine);
  }
};

// output, h_n, c_n, cells, gates; the last two are undefined if they are not saved, and empty when
// the dispatcher returns them.
using ForwardResult = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;
// grad_input, grad_h_0, grad_c_0, grad_weights: per direction those of the list of weights, but one
// for b_ih and b_hh. Without request.state the second and third hold nothing of use. With
// request.per_row, grad_weights holds instead d_gates for each direction, shaped as gates, of which
// those are products.
using BackwardResult = std::tuple<Tensor, Tensor, Tensor, std::vector<Tensor>>;

// Whether a tensor stands for another, or for values that it does not hold: only the dispatcher may
// look at its memory.
bool is_wrapper(const Tensor& tensor);

// A tensor's values in memory of its own, if the dispatcher is not there to find them.
inline Tensor in_memory(const Tensor& tensor) {
  return is_wrapper(tensor) ? tensor.clone() : tensor;
}

// The kernel of the CPU, of prepacked weights too.
ForwardResult lstm_cpu(LstmCall call, const ForwardOptions& options);

// The ops, through the dispatcher; prepacked weights have one of their own.
ForwardResult call_lstm(const LstmCall& call, const ForwardOptions& options);
BackwardResult call_lstm_backward(const LstmCall& call, const BackwardArguments& arguments);

// A member of those structs as the dispatcher passes it, and back.
template <typename T>
struct Passed {
  using type = const T&;
};
template <>
struct Passed<std::string> {
  using type = c10::string_view;
};
template <>
struct Passed<std::vector<Tensor>> {
  using type = at::TensorList;
};
template <>
struct Passed<bool> {
  using type = bool;
};
inline std::string owned(c10::string_view text) { return std::string(text); }
inline std::vector<Tensor> owned(at::TensorList tensors) { return tensors.vec(); }
const auto& owned(const auto& value) { return value; }

// Results with empty tensors for undefined ones, which the dispatcher does not take.
ForwardResult completed(ForwardResult result);
inline BackwardResult completed(BackwardResult result) { return result; }

// A function of a call as the dispatcher calls it.
template <auto function, typename Call, typename Options>
struct FlatOp;
template <auto function, typename... C, typename... O>
struct FlatOp<function, std::tuple<const C&...>, std::tuple<const O&...>> {
  static auto run(typename Passed<C>::type... call, typename Passed<O>::type... options) {
    return completed(function({owned(call)...}, {owned(options)...}));
  }
};
template <typename Result, typename Call, typename Options>
Options options_of(Result (*)(Call, const Options&));
template <auto function>
constexpr auto op = FlatOp<function, decltype(std::declval<LstmCall>().list()),
                           decltype(options_of(function).list())>::run;

}  // namespace fastlstm
