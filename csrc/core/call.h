// A call of an op as one value. The dispatcher takes every argument by itself, in the order of the
// schema, which is that of `list` of these structs.
#pragma once
#include <ATen/core/Tensor.h>

#include <optional>
#include <string>
#include <tuple>
#include <vector>

namespace fastlstm {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

// Shapes: layer.h.
struct LstmCall {
  Tensor input, h_0, c_0;
  std::vector<Tensor> weights;
  std::string layout;  // which weights there are: weights.h
  OptionalTensor batch_sizes = {}, lengths = {}, reset = {}, h_mask = {};

  bool has_options() const { return batch_sizes || lengths || reset || h_mask; }
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

struct PackedOptions {
  bool save_cells;
  auto list() const { return std::tie(save_cells); }
};

// Which gradients are requested besides those of the weights; per_row: what BackwardResult says.
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
// request.per_row, grad_weights holds instead what those are products of: d_gates for each
// direction, shaped as gates.
using BackwardResult = std::tuple<Tensor, Tensor, Tensor, std::vector<Tensor>>;
// output, h_n, c_n, cells
using PackedResult = std::tuple<Tensor, Tensor, Tensor, Tensor>;

// Whether a tensor stands for another, or for values that it does not hold: only the dispatcher may
// look at its memory.
bool is_wrapper(const Tensor& tensor);

// The same values in memory of its own, if the dispatcher is not there to find them.
inline Tensor in_memory(const Tensor& tensor) {
  return is_wrapper(tensor) ? tensor.clone() : tensor;
}

// The CPU's kernel.
ForwardResult lstm_cpu(LstmCall call, const ForwardOptions& options);

// Through the dispatcher.
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

// With empty tensors for undefined ones, which the dispatcher does not take.
ForwardResult completed(ForwardResult result);
PackedResult completed(PackedResult result);
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
