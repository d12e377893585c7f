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

ForwardResult call_lstm(const LstmCall& c, const ForwardOptions& options) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("fastlstm::lstm", "")
                             .typed<decltype(forward_op<call_lstm>)>();
  return op.call(c.input, c.h_0, c.c_0, c.weights, c.batch_sizes, c.lengths, c.reset, c.h_mask,
                 c.zoneout_h, c.zoneout_c, options.save_cells, options.save_gates,
                 options.recompute, options.engine);
}

BackwardResult call_lstm_backward(const LstmCall& c, const BackwardArguments& a) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("fastlstm::lstm_backward", "")
                             .typed<decltype(backward_op<call_lstm_backward>)>();
  return op.call(a.grad_output, a.grad_h_n, a.grad_c_n, a.grad_cells, c.input, c.h_0, c.c_0,
                 c.weights, c.batch_sizes, c.lengths, c.reset, c.h_mask, c.zoneout_h, c.zoneout_c,
                 a.output, a.cells, a.gates, a.request.input, a.request.state, a.engine,
                 a.request.per_row);
}

}  // namespace fastlstm
