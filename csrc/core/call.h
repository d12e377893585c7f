// The arguments of an op as structs. The dispatcher takes every argument separately; `as_tuple` of
// a struct returns its members in the order of the schema.
#pragma once
#include <optional>
#include <tuple>

#include "core/weights.h"

namespace fastlstm {

using OptionalTensor = std::optional<Tensor>;

// The arguments that all ops share. LayerCall states their shapes.
struct LstmCall {
  Tensor input, h_0, c_0;
  std::vector<Tensor> weights;
  std::string layout;  // see WeightLayout
  OptionalTensor batch_sizes = {}, lengths = {}, reset = {}, h_mask = {};

  auto as_tuple() const {
    return std::tie(input, h_0, c_0, weights, layout, batch_sizes, lengths, reset, h_mask);
  }
};

void for_each_non_weight(auto& call, const auto& visit) {
  visit(call.input, "input"), visit(call.h_0, "h_0"), visit(call.c_0, "c_0");
  if (call.batch_sizes) visit(*call.batch_sizes, "batch_sizes");
  if (call.lengths) visit(*call.lengths, "lengths");
  if (call.reset) visit(*call.reset, "reset");
  if (call.h_mask) visit(*call.h_mask, "h_mask");
}

struct ForwardOptions {
  bool save_cells = false, save_gates = false;  // whether cells and gates are returned
  std::string engine;                           // "auto" or the name of an engine
  auto as_tuple() const { return std::tie(save_cells, save_gates, engine); }
};

// The gradients that a caller requests: grad_input if `input`, grad_h_0 and grad_c_0 if `state`,
// and with `return_d_gates` d_gates in place of the gradients of the weights.
struct GradientRequest {
  bool input, state, return_d_gates;
};

struct BackwardArguments {
  OptionalTensor grad_output, grad_h_n, grad_c_n, grad_cells;
  Tensor output, cells, gates;  // saved by forward
  GradientRequest request;
  std::string engine;
  auto as_tuple() const {
    return std::tie(grad_output, grad_h_n, grad_c_n, grad_cells, output, cells, gates,
                    request.input, request.state, request.return_d_gates, engine);
  }
};

// output, h_n, c_n, cells, gates. If cells or gates are not saved, an engine returns an undefined
// tensor for them, and the op an empty one (see `without_undefined`).
using ForwardResult = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;
// grad_input, grad_h_0, grad_c_0, grad_weights. Without request.state the values of grad_h_0 and
// grad_c_0 are unspecified. For each direction grad_weights has the gradients in the order of the
// weights, without b_hh, whose gradient equals the gradient of b_ih. With return_d_gates it has
// d_gates for each direction: the gradients [T,B,4H] or [R,4H] of the pre-activations i, f, g, o.
using BackwardResult = std::tuple<Tensor, Tensor, Tensor, std::vector<Tensor>>;

// True for wrapper tensors (functorch, fake, conjugate view, ...), whose memory does not hold the
// values: only the dispatcher may read them.
bool is_wrapper(const Tensor& tensor);

// Returns a wrapper's clone, which has the values in memory, and any other tensor unchanged.
inline Tensor in_memory(const Tensor& tensor) {
  return is_wrapper(tensor) ? tensor.clone() : tensor;
}

// Call the ops through the dispatcher: lstm, or lstm_prepacked if the weights are prepacked.
ForwardResult call_lstm(const LstmCall& call, const ForwardOptions& options);
BackwardResult call_lstm_backward(const LstmCall& call, const BackwardArguments& arguments);

// Returns gradients of input, h_0, c_0 and the weights that can be differentiated again, from the
// gradients of output, h_n, c_n and cells, which are undefined tensors if missing. Python computes
// them: op/module.cpp sets the function. It stays nullptr without Python (examples/cpp).
inline std::vector<OptionalTensor> (*differentiable_gradients)(
    const std::vector<Tensor>& result_gradients, const LstmCall& call) = nullptr;

// The dispatcher passes a member of type T of the structs above as a Passed<T>. `owned` converts it
// to a T. `passed` and `options_of` are never called: only decltype uses them.
c10::string_view passed(const std::string&);
at::TensorList passed(const std::vector<Tensor>&);
bool passed(const bool&);
const auto& passed(const auto& value) { return value; }
template <typename T>
using Passed = decltype(passed(std::declval<const T&>()));
inline std::string owned(c10::string_view text) { return std::string(text); }
inline std::vector<Tensor> owned(at::TensorList tensors) { return tensors.vec(); }
const auto& owned(const auto& value) { return value; }

// Replaces undefined tensors, which the dispatcher does not return, by empty ones.
ForwardResult without_undefined(ForwardResult result);
inline BackwardResult without_undefined(BackwardResult result) { return result; }

// Turns a function of (LstmCall, options) into one that takes every argument separately.
template <auto function, typename Call, typename Options>
struct DispatcherFunction;
template <auto function, typename... C, typename... O>
struct DispatcherFunction<function, std::tuple<const C&...>, std::tuple<const O&...>> {
  static auto run(Passed<C>... call, Passed<O>... options) {
    return without_undefined(function({owned(call)...}, {owned(options)...}));
  }
};
template <typename Result, typename Call, typename Options>
Options options_of(Result (*)(Call, Options));
// `function` in the form that m.impl takes.
template <auto function>
constexpr auto op = DispatcherFunction<function, decltype(std::declval<LstmCall>().as_tuple()),
                                       decltype(options_of(function).as_tuple())>::run;

}  // namespace fastlstm
