// fast_method turns a C++ function into a Python function with positional arguments. pybind11 would
// take as long as a small step to convert the arguments.
#pragma once
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/object_ptr.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/csrc/utils/python_numbers.h>
#include <torch/csrc/utils/python_strings.h>

#include <type_traits>
#include <utility>

#include "core/call.h"

namespace fastlstm {

// Converts a Python object to a T. An error names the argument by its index or its name.
template <typename T>
T from_python(PyObject* object, const auto& argument) {
  const auto expect = [&](bool fits, const char* what) {
    TORCH_CHECK_TYPE(fits, "argument ", argument, ": expected ", what, ", got ",
                     Py_TYPE(object)->tp_name);
  };
  if constexpr (std::is_same_v<T, bool>) {
    expect(PyBool_Check(object), "a bool");
    return object == Py_True;
  } else if constexpr (std::is_same_v<T, int64_t>) {
    expect(PyIndex_Check(object) && !PyBool_Check(object), "an int");
    return THPUtils_unpackIndex(object);
  } else if constexpr (std::is_same_v<T, std::string>) {
    expect(PyUnicode_Check(object), "a str");
    return THPUtils_unpackString(object);
  } else if constexpr (std::is_same_v<T, std::vector<Tensor>>) {
    expect(PyList_Check(object) || PyTuple_Check(object), "a list of Tensors");
    T tensors(Py_SIZE(object));
    for (Py_ssize_t k = 0; k < Py_SIZE(object); ++k)
      tensors[k] = from_python<Tensor>(PySequence_Fast_GET_ITEM(object, k), argument);
    return tensors;
  } else {  // Tensor or OptionalTensor
    if (std::is_same_v<T, OptionalTensor> && object == Py_None) return T();
    expect(THPVariable_Check(object), "a Tensor");
    return THPVariable_Unpack(object);
  }
}

// Returns tensors as a Python tuple. An undefined tensor becomes None.
PyObject* to_python(auto results) {
  const auto pack = [](auto&... tensors) {
    return PyTuple_Pack(sizeof...(tensors),
                        THPObjectPtr(THPVariable_Wrap(std::move(tensors))).get()...);
  };
  return std::apply(pack, results);
}

template <typename Result, typename... Args>
PyObject* call_from_python(Result (*function)(Args...), PyObject* const* args, Py_ssize_t count) {
  TORCH_CHECK_TYPE(count == sizeof...(Args), "expected ", sizeof...(Args), " arguments, got ",
                   count);
  return [&]<size_t... I>(std::index_sequence<I...>) {
    // If a tensor has a Python object, torch takes the GIL when the last C++ reference to the
    // tensor is dropped (c10/util/intrusive_ptr.h). So the function gets copies, and `arguments`
    // keeps a reference to each tensor until this thread holds the GIL again.
    const std::tuple<std::decay_t<Args>...> arguments{
        from_python<std::decay_t<Args>>(args[I], I)...};
    return to_python([&] {
      const pybind11::gil_scoped_release no_gil;
      return std::apply(function, arguments);
    }());
  }(std::index_sequence_for<Args...>());
}

template <auto function>
PyObject* fast_method(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  return call_from_python(function, args, count);
  END_HANDLE_TH_ERRORS
}

}  // namespace fastlstm
