// Whether a call is plain: eager, on the CPU, of tensors that are nothing but tensors. Asked here,
// since in Python the questions take longer than a small step.
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
  if (!tensor.is_cpu() || tensor.layout() != at::kStrided) return false;
  const auto own = tensor.scalar_type();
  if (dtype && (own == at::kBool || own == at::kLong)) return true;  // resets, lengths
  if (!dtype) dtype = own;
  return own == *dtype &&
         (own == at::kFloat || own == at::kDouble || own == at::kBFloat16 || own == at::kHalf);
}

inline PyObject* are_plain(PyObject*, PyObject* const* objects, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  std::optional<at::ScalarType> dtype;
  const bool are = is_plain_thread() && std::all_of(objects, objects + count, [&](PyObject* each) {
                     return is_plain(each, dtype);
                   });
  return PyBool_FromLong(are);
  END_HANDLE_TH_ERRORS
}

}  // namespace fastlstm
