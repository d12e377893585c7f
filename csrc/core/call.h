// A call of an op as one value. The dispatcher takes every argument by itself, in the order of the
// schema: `list` of the structs below is the only place in C++ that knows that order.
#pragma once
#include <ATen/core/Tensor.h>

#include <optional>
#include <string>
#include <tuple>
#include <vector>

namespace fastlstm {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

// References that are valid as long as the call. Shapes: layer.h.
struct LstmCall {
  const Tensor &input, &h_0, &c_0;
  at::TensorList weights;
  c10::string_view layout;  // which weights there are: weights.h
  const OptionalTensor &batch_sizes, &lengths, &reset, &h_mask, &zoneout_h, &zoneout_c;

  using List =
      std::tuple<const Tensor&, const Tensor&, const Tensor&, at::TensorList, c10::string_view,
                 const OptionalTensor&, const OptionalTensor&, const OptionalTensor&,
                 const OptionalTensor&, const OptionalTensor&, const OptionalTensor&>;
  List list() const {
    return {input,   h_0,   c_0,    weights,   layout,   batch_sizes,
            lengths, reset, h_mask, zoneout_h, zoneout_c};
  }
};

// visit(member, name) for the tensors of a call but its weights, of any struct that names them.
template <typename Call, typename Visit>
void for_each_member(Call& call, const Visit& visit) {
  visit(call.input, "input"), visit(call.h_0, "h_0"), visit(call.c_0, "c_0");
  visit(call.batch_sizes, "batch_sizes"), visit(call.lengths, "lengths");
  visit(call.reset, "reset"), visit(call.h_mask, "h_mask");
  visit(call.zoneout_h, "zoneout_h"), visit(call.zoneout_c, "zoneout_c");
}

// The same for those that are given, as tensors.
template <typename Call, typename Visit>
void for_each_tensor(Call& call, const Visit& visit) {
  for_each_member(call, [&visit](auto& member, const char* name) {
    if constexpr (std::is_same_v<std::decay_t<decltype(member)>, OptionalTensor>) {
      if (member) visit(*member, name);
    } else {
      visit(member, name);
    }
  });
}

// The tensors of a call but its weights, owned.
struct CallTensors {
  Tensor input, h_0, c_0;
  OptionalTensor batch_sizes, lengths, reset, h_mask, zoneout_h, zoneout_c;

  CallTensors() = default;
  explicit CallTensors(const LstmCall& c)
      : input(c.input),
        h_0(c.h_0),
        c_0(c.c_0),
        batch_sizes(c.batch_sizes),
        lengths(c.lengths),
        reset(c.reset),
        h_mask(c.h_mask),
        zoneout_h(c.zoneout_h),
        zoneout_c(c.zoneout_c) {}
};

// A call that owns all that it has.
struct OwnedCall : CallTensors {
  std::vector<Tensor> weights;
  std::string layout;

  OwnedCall() = default;
  explicit OwnedCall(const LstmCall& c)
      : CallTensors(c), weights(c.weights.vec()), layout(c.layout) {}
  LstmCall call() const {
    return {input,   h_0,   c_0,    weights,   layout,   batch_sizes,
            lengths, reset, h_mask, zoneout_h, zoneout_c};
  }
};

struct ForwardOptions {
  bool save_cells, save_gates, recompute;
  c10::string_view engine;

  using List = std::tuple<bool, bool, bool, c10::string_view>;
  List list() const { return {save_cells, save_gates, recompute, engine}; }
};

// Which gradients are requested besides those of the weights; per_row: what BackwardResult says.
struct GradientRequest {
  bool input, state, per_row;
};

struct BackwardArguments {
  const OptionalTensor &grad_output, &grad_h_n, &grad_c_n, &grad_cells;
  const Tensor &output, &cells, &gates;  // saved
  GradientRequest request;
  c10::string_view engine;

  using List = std::tuple<const OptionalTensor&, const OptionalTensor&, const OptionalTensor&,
                          const OptionalTensor&, const Tensor&, const Tensor&, const Tensor&, bool,
                          bool, bool, c10::string_view>;
  List list() const {
    return {grad_output, grad_h_n,      grad_c_n,      grad_cells,      output, cells,
            gates,       request.input, request.state, request.per_row, engine};
  }
};

// output, h_n, c_n, cells, gates
using ForwardResult = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;
// grad_input, grad_h_0, grad_c_0, grad_weights: per direction those of the list of weights, but one
// for b_ih and b_hh. Without request.state the second and third hold nothing of use. With
// request.per_row, grad_weights holds instead what those are products of: d_gates for each
// direction, shaped as gates.
using BackwardResult = std::tuple<Tensor, Tensor, Tensor, std::vector<Tensor>>;
// output, h_n, c_n, cells
using PackedResult = std::tuple<Tensor, Tensor, Tensor, Tensor>;

// What the gradients of the weights at a step are products of: [1,B,I], [1,B,H] and [1,B,4H].
struct StepFactors {
  Tensor input, h_0, d_gates;
};
// W_ih's, W_hh's and the biases' of many such steps, in the dtype of the state; on the CPU.
std::vector<Tensor> step_gradients_cpu(const std::vector<StepFactors>& steps);

// Whether a tensor stands for another, or for values that it does not hold: only the dispatcher may
// look at its memory.
bool is_wrapper(const Tensor& tensor);

// The same values in memory of its own, if the dispatcher is not there to find them.
inline Tensor in_memory(const Tensor& tensor) {
  return is_wrapper(tensor) ? tensor.clone() : tensor;
}

// Through the dispatcher.
ForwardResult call_lstm(const LstmCall& call, const ForwardOptions& options);
BackwardResult call_lstm_backward(const LstmCall& call, const BackwardArguments& arguments);

// A function of a call as the dispatcher calls it.
template <auto function, typename Result, typename Call, typename Options>
struct FlatOp;
template <auto function, typename Result, typename... C, typename... O>
struct FlatOp<function, Result, std::tuple<C...>, std::tuple<O...>> {
  static Result run(C... call, O... options) { return function({call...}, {options...}); }
};
template <ForwardResult (*function)(const LstmCall&, const ForwardOptions&)>
constexpr auto forward_op =
    FlatOp<function, ForwardResult, LstmCall::List, ForwardOptions::List>::run;
template <BackwardResult (*function)(const LstmCall&, const BackwardArguments&)>
constexpr auto backward_op =
    FlatOp<function, BackwardResult, LstmCall::List, BackwardArguments::List>::run;

}  // namespace fastlstm
