#include "core/call.h"

#include <ATen/core/dispatch/Dispatcher.h>

#include "core/layer_call.h"
#include "core/operators.h"

namespace fastlstm {

bool is_wrapper(const Tensor& tensor) {
  using c10::DispatchKey;
  static const c10::DispatchKeySet wrappers(
      {DispatchKey::Python, DispatchKey::Batched, DispatchKey::FuncTorchBatched,
       DispatchKey::FuncTorchGradWrapper, DispatchKey::Functionalize,
       DispatchKey::BatchedNestedTensor, DispatchKey::Conjugate, DispatchKey::Negative,
       DispatchKey::ZeroTensor});
  return tensor.key_set().has_any(wrappers);
}

ForwardResult without_undefined(ForwardResult result) {
  auto& [output, h_n, c_n, cells, gates] = result;
  const auto options = output.options();
  if (!cells.defined()) cells = at::empty({0}, options.dtype(state_dtype(output.scalar_type())));
  if (!gates.defined()) gates = at::empty({0}, options);
  return result;
}

template <auto function>
static auto op_with_signature_of(const char* name) {
  return c10::Dispatcher::singleton()
      .findSchemaOrThrow(name, "")
      .typed<std::remove_cvref_t<decltype(*op<function>)>>();
}

static auto call_op(const auto& handle, const LstmCall& call, const auto& options) {
  return std::apply([&](const auto&... arguments) { return handle.call(arguments...); },
                    std::tuple_cat(call.as_tuple(), options.as_tuple()));
}

ForwardResult call_lstm(const LstmCall& call, const ForwardOptions& options) {
  static const auto lstm = op_with_signature_of<call_lstm>("fastlstm::lstm");
  static const auto prepacked = op_with_signature_of<call_lstm>("fastlstm::lstm_prepacked");
  return call_op(WeightLayout::of(call.layout).format.empty() ? lstm : prepacked, call, options);
}

BackwardResult call_lstm_backward(const LstmCall& call, const BackwardArguments& arguments) {
  static const auto backward = op_with_signature_of<call_lstm_backward>("fastlstm::lstm_backward");
  return call_op(backward, call, arguments);
}

}  // namespace fastlstm
