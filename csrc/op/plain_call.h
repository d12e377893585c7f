// Plain calls: eager, on the CPU, of tensors that are nothing but tensors. They are checked here,
// since in Python the checks take longer than a small step.
#pragma once
#include <ATen/PythonTorchFunctionTLS.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/Tensor.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/python_variable.h>

#include <algorithm>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "core/call.h"
#include "op/fast_method.h"
#include "op/short_calls.h"

namespace fastlstm {

// No tracer, transform, mode or autocast is on in this thread.
inline bool is_plain_thread() {
  const auto included = c10::impl::tls_local_dispatch_key_set().included_;
  return !included.has(c10::DispatchKey::Tracer) &&
         !included.has(c10::DispatchKey::FuncTorchDynamicLayerFrontMode) &&
         !at::impl::torch_function_mode_enabled() &&
         !c10::impl::TorchDispatchModeTLS::any_modes_set() &&
         !at::autocast::is_autocast_enabled(at::kCPU);
}

// A dense tensor on the CPU and of no subclass, or a list or tuple of such, or None. All that hold
// numbers have one dtype, which the engines compute.
inline bool is_plain(PyObject* object, std::optional<at::ScalarType>& dtype) {
  if (object == Py_None) return true;
  if (PyList_CheckExact(object) || PyTuple_CheckExact(object)) {
    PyObject* const* const items = PySequence_Fast_ITEMS(object);
    return std::all_of(items, items + Py_SIZE(object),
                       [&](PyObject* item) { return is_plain(item, dtype); });
  }
  auto* const type = reinterpret_cast<PyObject*>(Py_TYPE(object));
  if (type != THPVariableClass && type != ParameterClass) return false;
  const at::Tensor& tensor = THPVariable_Unpack(object);
  if (!tensor.is_cpu() || tensor.layout() != at::kStrided || tensor.is_nested()) return false;
  const auto own = tensor.scalar_type();
  if (dtype && (own == at::kBool || own == at::kLong)) return true;  // resets, lengths
  if (!dtype) dtype = own;
  return own == *dtype &&
         (own == at::kFloat || own == at::kDouble || own == at::kBFloat16 || own == at::kHalf);
}

inline bool are_all_plain(at::ArrayRef<PyObject*> objects) {
  std::optional<at::ScalarType> dtype;
  return is_plain_thread() && std::all_of(objects.begin(), objects.end(),
                                          [&](PyObject* each) { return is_plain(each, dtype); });
}

// A call of one layer as a module makes it, steps first.
struct PlainCall {
  Tensor input;
  OptionalTensor h_0, c_0, lengths, reset;
};

// The arguments of `plain_lstm` in module.cpp; nothing where something else has to be decided, or
// to see the call. Prepacked weights give no gradients, and are bytes instead of numbers.
template <bool prepacked>
std::optional<PlainCall> plain_call(PyObject* const* args, bool batch_first) {
  PyObject *const hx = args[1], *const weights = prepacked ? Py_None : args[2];
  const bool has_state = PyTuple_CheckExact(hx) && Py_SIZE(hx) == 2;
  if (!THPVariable_Check(args[0]) || (hx != Py_None && !has_state) ||
      !are_all_plain({args[0], hx, weights, args[9], args[10]}))
    return {};
  const auto tensor = [](PyObject* object) { return from_python<OptionalTensor>(object, 0); };
  PlainCall call{THPVariable_Unpack(args[0]), {}, {}, tensor(args[9]), tensor(args[10])};
  if (has_state)
    call.h_0 = tensor(PyTuple_GET_ITEM(hx, 0)), call.c_0 = tensor(PyTuple_GET_ITEM(hx, 1));
  const auto size = [&](int place) { return from_python<int64_t>(args[place], place); };
  const int64_t hidden_size = size(5), output_size = size(6), directions = size(7);
  if (call.input.dim() != 3 || call.input.size(2) != size(4)) return {};
  if (has_state && !(call.h_0 && call.c_0)) return {};
  const int64_t batch = call.input.size(batch_first ? 0 : 1);
  const auto has = [](const OptionalTensor& tensor, at::ScalarType dtype, at::IntArrayRef shape) {
    return !tensor || (tensor->scalar_type() == dtype && tensor->sizes() == shape);
  };
  const auto dtype = call.input.scalar_type();
  if (!has(call.h_0, dtype, {directions, batch, output_size}) ||
      !has(call.c_0, dtype, {directions, batch, hidden_size}) ||
      !has(call.lengths, at::kLong, {batch}) ||
      !has(call.reset, at::kBool, call.input.sizes().slice(0, 2)))
    return {};
  if constexpr (prepacked) {
    const auto needs_grad = [](const OptionalTensor& t) { return t && t->requires_grad(); };
    if (at::GradMode::is_enabled() &&
        (needs_grad(call.input) || needs_grad(call.h_0) || needs_grad(call.c_0)))
      return {};
    if (!has_state) {
      const auto zeros = [&](int64_t size) {
        return at::zeros({directions, batch, size}, call.input.options());
      };
      call.c_0 = zeros(hidden_size);
      call.h_0 = output_size == hidden_size ? call.c_0 : zeros(output_size);
    }
  }
  if (batch_first) call.input = call.input.transpose(0, 1);
  if (batch_first && call.reset) call.reset = call.reset->transpose(0, 1);
  return call;
}

// The results of nn.LSTM, or None where the call is not plain.
template <bool prepacked>
PyObject* plain_lstm(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  TORCH_CHECK_TYPE(count == 11, "expected 11 arguments, got ", count);
  const int batch_first = PyObject_IsTrue(args[8]);
  if (batch_first < 0) throw python_error();
  const auto call = plain_call<prepacked>(args, batch_first);
  if (!call) Py_RETURN_NONE;
  auto weights = from_python<std::vector<Tensor>>(args[2], 2);
  auto layout = from_python<std::string>(args[3], 3);
  auto [output, h_n, c_n, cells] = [&] {
    const WithoutGil others_run;
    const auto& [input, h_0, c_0, lengths, reset] = *call;
    if constexpr (prepacked)
      return short_calls::lstm_packed(input, *h_0, *c_0, weights, layout, {}, lengths, reset,
                                      /*save_cells=*/false);
    else
      return short_calls::lstm(input, h_0, c_0, weights, layout, {}, lengths, reset, {},
                               /*save_cells=*/false, "auto");
  }();
  if (batch_first) output = output.transpose(0, 1);
  THPObjectPtr state(to_python(std::tuple(std::move(h_n), std::move(c_n))));
  THPObjectPtr results(PyTuple_New(2));
  if (!results) throw python_error();
  PyTuple_SET_ITEM(results.get(), 0, THPVariable_Wrap(std::move(output)));
  PyTuple_SET_ITEM(results.get(), 1, state.release());
  return results.release();
  END_HANDLE_TH_ERRORS
}

inline PyObject* are_plain(PyObject*, PyObject* const* objects, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  return PyBool_FromLong(are_all_plain({objects, static_cast<size_t>(count)}));
  END_HANDLE_TH_ERRORS
}

}  // namespace fastlstm
