// A call of an op as one value. The dispatcher takes every argument by itself, in the order of the
// schema, which the two lists below and `list` of the structs have.
#pragma once
#include <ATen/core/Tensor.h>

#include <optional>
#include <string>
#include <tuple>
#include <vector>

namespace fastlstm {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

// The tensors of a call but its weights: macro(name). Shapes: layer.h.
#define FASTLSTM_FOR_EACH_INPUT(macro) macro(input) macro(h_0) macro(c_0)
#define FASTLSTM_FOR_EACH_OPTION(macro) macro(batch_sizes) macro(lengths) macro(reset) macro(h_mask)
// The names in a list, before or after others.
#define FASTLSTM_BEFORE(name) name,
#define FASTLSTM_AFTER(name) , name

struct CallTensors {
#define FASTLSTM_MEMBER(name) Tensor name;
  FASTLSTM_FOR_EACH_INPUT(FASTLSTM_MEMBER)
#undef FASTLSTM_MEMBER
#define FASTLSTM_MEMBER(name) OptionalTensor name;
  FASTLSTM_FOR_EACH_OPTION(FASTLSTM_MEMBER)
#undef FASTLSTM_MEMBER
};

// visit(member, name) for those tensors, of any struct that names them.
void for_each_member(auto& call, const auto& visit) {
#define FASTLSTM_VISIT(name) visit(call.name, #name);
  FASTLSTM_FOR_EACH_INPUT(FASTLSTM_VISIT)
  FASTLSTM_FOR_EACH_OPTION(FASTLSTM_VISIT)
#undef FASTLSTM_VISIT
}

// Whether a call has any of those that are optional.
bool has_options(const auto& call) {
#define FASTLSTM_OR(name) || call.name
  return false FASTLSTM_FOR_EACH_OPTION(FASTLSTM_OR);
#undef FASTLSTM_OR
}

// visit(tensor, name) for those that are given.
void for_each_tensor(auto& call, const auto& visit) {
  for_each_member(call, [&visit](auto& member, const char* name) {
    if constexpr (!std::is_same_v<std::decay_t<decltype(member)>, OptionalTensor>)
      visit(member, name);
    else if (member)
      visit(*member, name);
  });
}

inline const OptionalTensor kNoTensor;

// References that are valid as long as the call.
struct LstmCall {
  const Tensor &input, &h_0, &c_0;
  at::TensorList weights;
  c10::string_view layout;  // which weights there are: weights.h
#define FASTLSTM_MEMBER(name) const OptionalTensor& name = kNoTensor;
  FASTLSTM_FOR_EACH_OPTION(FASTLSTM_MEMBER)
#undef FASTLSTM_MEMBER

  // What torch.nn.LSTM computes of dense data, without a projection.
  bool is_plain() const { return !has_options(*this) && (layout.empty() || layout == "bias"); }
  auto list() const {
    return std::tie(FASTLSTM_FOR_EACH_INPUT(FASTLSTM_BEFORE) weights,
                    layout FASTLSTM_FOR_EACH_OPTION(FASTLSTM_AFTER));
  }
  CallTensors tensors() const {
    return {FASTLSTM_FOR_EACH_INPUT(FASTLSTM_BEFORE) FASTLSTM_FOR_EACH_OPTION(FASTLSTM_BEFORE)};
  }
};

// A call that owns what it has.
struct OwnedCall : CallTensors {
  std::vector<Tensor> weights;
  std::string layout;

  OwnedCall() = default;
  explicit OwnedCall(const LstmCall& c)
      : CallTensors(c.tensors()), weights(c.weights.vec()), layout(c.layout) {}
  LstmCall call() const {
    return {FASTLSTM_FOR_EACH_INPUT(FASTLSTM_BEFORE) weights,
            layout FASTLSTM_FOR_EACH_OPTION(FASTLSTM_AFTER)};
  }
};

struct ForwardOptions {
  bool save_cells, save_gates;
  c10::string_view engine;
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
  c10::string_view engine;
  auto list() const {
    return std::tie(grad_output, grad_h_n, grad_c_n, grad_cells, output, cells, gates,
                    request.input, request.state, request.per_row, engine);
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
template <typename T>
using Passed =
    std::conditional_t<std::is_same_v<T, Tensor> || std::is_same_v<T, OptionalTensor>, const T&, T>;
template <auto function, typename Call, typename Options>
struct FlatOp;
template <auto function, typename... C, typename... O>
struct FlatOp<function, std::tuple<const C&...>, std::tuple<const O&...>> {
  static auto run(Passed<C>... call, Passed<O>... options) {
    return function({call...}, {options...});
  }
};
template <typename Result, typename Options>
Options options_of(Result (*)(const LstmCall&, const Options&));
template <auto function>
constexpr auto op = FlatOp<function, decltype(std::declval<LstmCall>().list()),
                           decltype(options_of(function).list())>::run;

}  // namespace fastlstm
