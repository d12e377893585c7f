#include "core/call.h"

#include <ATen/core/dispatch/Dispatcher.h>

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

template <typename Function, typename Options>
static auto flattened(const c10::TypedOperatorHandle<Function>& op, const LstmCall& call,
                      const Options& options) {
  return std::apply([&op](const auto&... arguments) { return op.call(arguments...); },
                    std::tuple_cat(call.list(), options.list()));
}

ForwardResult call_lstm(const LstmCall& call, const ForwardOptions& options) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("fastlstm::lstm", "")
                             .typed<std::remove_pointer_t<decltype(forward_op<call_lstm>)>>();
  return flattened(op, call, options);
}

BackwardResult call_lstm_backward(const LstmCall& call, const BackwardArguments& arguments) {
  static const auto op =
      c10::Dispatcher::singleton()
          .findSchemaOrThrow("fastlstm::lstm_backward", "")
          .typed<std::remove_pointer_t<decltype(backward_op<call_lstm_backward>)>>();
  return flattened(op, call, arguments);
}

}  // namespace fastlstm
