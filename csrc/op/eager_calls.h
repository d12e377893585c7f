// Eager calls from Python: the forward op as plain functions, and the checks of a plain call, of
// tensors that are nothing but tensors. The ways through torch.ops and the same checks in Python
// take longer than a small step. A call that nothing but the CPU's kernel would see passes the
// dispatcher by.
#pragma once
#include <ATen/PythonTorchFunctionTLS.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/grad_mode.h>
#include <ATen/record_function.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/python_variable.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "core/call.h"
#include "core/operators.h"
#include "cpu/lstm_cpu.h"
#include "op/fast_method.h"

namespace fastlstm {

// Whether a call records no gradient, and the dispatcher would find nothing above the CPU's kernel.
inline bool needs_only_the_cpu(const LstmCall& call) {
  bool needs_grad = false;
  c10::DispatchKeySet keys;
  const auto add = [&](const Tensor& tensor, const char* = nullptr) {
    keys = keys | tensor.key_set();
    needs_grad = needs_grad || tensor.requires_grad();
  };
  for_each_tensor(call, add);
  for (const Tensor& weight : call.weights) add(weight);
  if (needs_grad && at::GradMode::is_enabled()) return false;
  const auto local = c10::impl::tls_local_dispatch_key_set();
  const auto passed = c10::autograd_dispatch_keyset_with_ADInplaceOrView |
                      c10::DispatchKeySet(c10::DispatchKey::BackendSelect);
  return ((keys | local.included_) - local.excluded_ - passed).highestPriorityTypeId() ==
         c10::DispatchKey::CPU;
}

// The op without gates; cells are undefined if they are not saved.
inline ForwardResult run(LstmCall call, const ForwardOptions& options) {
  if (!needs_only_the_cpu(call)) {
    ForwardResult result = call_lstm(call, options);
    if (!options.save_cells) std::get<3>(result) = Tensor();
    return result;
  }
  RECORD_FUNCTION("fastlstm::lstm", std::vector<c10::IValue>());
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  return lstm_cpu(std::move(call), options);
}

// A state of zeros where there is none, of the sizes of the input and the weights.
inline LstmCall with_state(LstmCall call) {
  TORCH_CHECK(call.h_0.defined() == call.c_0.defined(),
              "lstm: expected h_0 and c_0, or None for both, got one of them");
  if (call.h_0.defined()) return call;
  const auto& w = call.weights;
  TORCH_CHECK(w.size() >= 2 && w[0].dim() == 2 && w[1].dim() == 2,
              "lstm: expected weights that begin with W_ih and W_hh, of 2 dimensions each");
  const int64_t gates = w[0].size(0), output_size = w[1].size(1);
  const auto directions =
      static_cast<int64_t>(w.size()) / WeightLayout::of(call.layout).weights_per_direction();
  const auto batch = call.batch_sizes        ? call.batch_sizes->select(0, 0).item<int64_t>()
                     : call.input.dim() == 3 ? call.input.size(1)
                                             : 0;  // an error of the input
  const auto zeros = [&](int64_t size) {
    return at::zeros({directions, batch, size}, call.input.options());
  };
  call.c_0 = zeros(gates / 4);
  call.h_0 = output_size == gates / 4 ? call.c_0 : zeros(output_size);
  return call;
}

// The arguments of the op; without h_0 and c_0 they are zeros. Returns what it does but the gates.
inline std::tuple<Tensor, Tensor, Tensor, Tensor> lstm(
    const Tensor& input, const OptionalTensor& h_0, const OptionalTensor& c_0,
    std::vector<Tensor> weights, std::string layout, const OptionalTensor& batch_sizes,
    const OptionalTensor& lengths, const OptionalTensor& reset, const OptionalTensor& h_mask,
    bool save_cells, std::string engine) {
  LstmCall call{input,
                h_0.value_or(Tensor()),
                c_0.value_or(Tensor()),
                std::move(weights),
                std::move(layout),
                batch_sizes,
                lengths,
                reset,
                h_mask};
  auto [output, h_n, c_n, cells, gates] =
      run(with_state(std::move(call)), {save_cells, /*save_gates=*/false, std::move(engine)});
  return {std::move(output), std::move(h_n), std::move(c_n), std::move(cells)};
}

// Rows [B,size] as a step [1,B,size]; `alone`: nothing but the CPU's kernel sees it.
inline Tensor as_step(const Tensor& rows, bool alone) {
  if (!alone) return rows.unsqueeze(0);
  Tensor step = at::detail::make_tensor<c10::TensorImpl>(
      c10::TensorImpl::VIEW, c10::Storage(rows.storage()), rows.key_set(), rows.dtype());
  c10::SmallVector<int64_t, 4> sizes{1}, strides{0};
  sizes.append(rows.sizes().begin(), rows.sizes().end());
  strides.append(rows.strides().begin(), rows.strides().end());
  step.unsafeGetTensorImpl()->set_sizes_and_strides(sizes, strides, rows.storage_offset());
  return step;
}
// A step back to rows: a state that nobody else has.
inline Tensor as_rows(const Tensor& state, bool alone) {
  const c10::SmallVector<int64_t, 4> sizes(state.sizes().begin() + 1, state.sizes().end());
  // To autograd it is no view: hooks of a view are lost when it is written to.
  if (!alone) return at::_unsafe_view(state, sizes);
  state.unsafeGetTensorImpl()->set_sizes_contiguous(sizes);
  return state;
}

// input [B,I], h and c [B,H], or zeros
inline std::tuple<Tensor, Tensor> lstm_cell(const Tensor& input, const OptionalTensor& h,
                                            const OptionalTensor& c, std::vector<Tensor> weights,
                                            std::string layout, std::string engine) {
  LstmCall call{input, h.value_or(Tensor()), c.value_or(Tensor()), std::move(weights),
                std::move(layout)};
  const bool alone = needs_only_the_cpu(call);
  // Without gradients the views need no tracking, which costs as much as a small step.
  std::optional<at::AutoDispatchBelowADInplaceOrView> guard;
  if (!at::GradMode::is_enabled()) guard.emplace();
  for (Tensor* const rows : {&call.input, &call.h_0, &call.c_0})
    if (rows->defined()) *rows = as_step(*rows, alone);
  const auto [output, h_n, c_n, cells, gates] = run(
      with_state(std::move(call)), {/*save_cells=*/false, /*save_gates=*/false, std::move(engine)});
  return {as_rows(h_n, alone), as_rows(c_n, alone)};
}

// No tracer, transform, mode or autocast is on in this thread.
inline bool is_plain_thread() {
  const auto included = c10::impl::tls_local_dispatch_key_set().included_;
  return !included.has(c10::DispatchKey::Tracer) &&
         !included.has(c10::DispatchKey::FuncTorchDynamicLayerFrontMode) &&
         !at::impl::torch_function_mode_enabled() &&
         !c10::impl::TorchDispatchModeTLS::any_modes_set() &&
         !at::autocast::is_autocast_enabled(at::kCPU);
}

// Whether an object is a tensor of no subclass.
inline bool is_tensor(PyObject* object) {
  auto* const its_class = reinterpret_cast<PyObject*>(Py_TYPE(object));
  return its_class == THPVariableClass || its_class == ParameterClass;
}

// Whether an object is None or a dense tensor on the CPU, of no subclass. All tensors of numbers
// must have one dtype, one that the engines compute.
inline bool is_plain(PyObject* object, std::optional<at::ScalarType>& dtype) {
  if (object == Py_None) return true;
  if (!is_tensor(object)) return false;
  const at::Tensor& tensor = THPVariable_Unpack(object);
  if (!tensor.is_cpu() || tensor.layout() != at::kStrided || tensor.is_nested()) return false;
  const auto type = tensor.scalar_type();
  if (dtype && (type == at::kBool || type == at::kLong)) return true;  // resets, lengths
  if (!dtype) dtype = type;
  return type == *dtype &&
         (type == at::kFloat || type == at::kDouble || type == at::kBFloat16 || type == at::kHalf);
}

using Objects = at::ArrayRef<PyObject*>;
// The items of a list or tuple, or else the object itself.
inline Objects items_of(PyObject* const& object) {
  if (!PyList_CheckExact(object) && !PyTuple_CheckExact(object)) return object;
  return {PySequence_Fast_ITEMS(object), static_cast<size_t>(Py_SIZE(object))};
}

// Whether is_plain holds for all of these objects, or for their items.
inline bool are_all_plain(Objects objects) {
  std::optional<at::ScalarType> dtype;
  const auto plain = [&](PyObject* item) { return is_plain(item, dtype); };
  return is_plain_thread() && std::ranges::all_of(objects, [&](PyObject* const& object) {
           return std::ranges::all_of(items_of(object), plain);
         });
}

// Whether the weights are the parameters that a module has now under these names.
inline bool are_parameters(Objects weights, PyObject* parameters, Objects names) {
  const auto is_named = [&](PyObject* weight, PyObject* name) {
    return weight == PyDict_GetItem(parameters, name);
  };
  return PyDict_CheckExact(parameters) && std::ranges::equal(weights, names, is_named);
}

// Whether an object is a tensor of no subclass, of the sizes in a tuple.
inline bool has_shape(PyObject* object, PyObject* shape) {
  const auto is = [](int64_t size, PyObject* expected) {
    return PyLong_CheckExact(expected) && PyLong_AsLongLong(expected) == size;
  };
  return is_tensor(object) &&
         std::ranges::equal(THPVariable_Unpack(object).sizes(), items_of(shape), is);
}

// The arguments of `plain_lstm`, which module.cpp describes.
struct PlainArguments {
  PyObject *input, *hx, *weights, *layout, *parameters, *names, *lengths, *reset;
  PyObject *input_size, *hidden_size, *proj_size, *num_layers;
  PyObject *bias, *bidirectional, *batch_first, *dropout;
};

// The call that these arguments make, steps first; nothing where something else has to be decided,
// or to see the call. Prepacked weights give no gradients, and are bytes instead of numbers.
inline std::optional<LstmCall> plain_call(const PlainArguments& a) {
  const auto size = [](PyObject* object) { return from_python<int64_t>(object, 0); };
  const auto flag = [](PyObject* object) { return from_python<bool>(object, 0); };
  const auto tensor = [](PyObject* object) { return from_python<OptionalTensor>(object, 0); };
  auto layout = from_python<std::string>(a.layout, 3);
  const auto weight_layout = WeightLayout::of(layout);
  const bool prepacked = !weight_layout.format.empty();
  const bool has_state = PyTuple_CheckExact(a.hx) && Py_SIZE(a.hx) == 2;
  if (size(a.num_layers) != 1 || flag(a.bias) != weight_layout.bias || !PyFloat_Check(a.dropout) ||
      !THPVariable_Check(a.input) || (a.hx != Py_None && !has_state) ||
      !are_all_plain({a.input, a.hx, prepacked ? Py_None : a.weights, a.lengths, a.reset}) ||
      !(prepacked || are_parameters(items_of(a.weights), a.parameters, items_of(a.names))))
    return {};
  OptionalTensor h_0, c_0, lengths = tensor(a.lengths), reset = tensor(a.reset);
  if (has_state) h_0 = tensor(PyTuple_GET_ITEM(a.hx, 0)), c_0 = tensor(PyTuple_GET_ITEM(a.hx, 1));
  const int64_t hidden_size = size(a.hidden_size), proj_size = size(a.proj_size);
  const int64_t output_size = proj_size > 0 ? proj_size : hidden_size;
  const int64_t directions = flag(a.bidirectional) ? 2 : 1;
  const bool batch_first = flag(a.batch_first);
  Tensor input = THPVariable_Unpack(a.input);
  if (input.dim() != 3 || input.size(2) != size(a.input_size)) return {};
  if (has_state && !(h_0 && c_0)) return {};
  const int64_t batch = input.size(batch_first ? 0 : 1);
  const auto has = [](const OptionalTensor& tensor, at::ScalarType dtype, at::IntArrayRef shape) {
    return !tensor || (tensor->scalar_type() == dtype && tensor->sizes() == shape);
  };
  const auto dtype = input.scalar_type();
  if (!has(h_0, dtype, {directions, batch, output_size}) ||
      !has(c_0, dtype, {directions, batch, hidden_size}) || !has(lengths, at::kLong, {batch}) ||
      !has(reset, at::kBool, input.sizes().slice(0, 2)))
    return {};
  const auto needs_grad = [](const OptionalTensor& t) { return t && t->requires_grad(); };
  if (prepacked && at::GradMode::is_enabled() &&
      (needs_grad(input) || needs_grad(h_0) || needs_grad(c_0)))
    return {};
  if (batch_first) input = input.transpose(0, 1);
  if (batch_first && reset) reset = reset->transpose(0, 1);
  if (!has_state) {
    c_0 = at::zeros({directions, batch, hidden_size}, input.options());
    h_0 = output_size == hidden_size ? c_0
                                     : at::zeros({directions, batch, output_size}, input.options());
  }
  auto weights = from_python<std::vector<Tensor>>(a.weights, 2);
  return LstmCall{
      std::move(input), *h_0, *c_0, std::move(weights), std::move(layout), {}, std::move(lengths),
      std::move(reset)};
}

// The results of nn.LSTM, or None where the call is not plain.
inline PyObject* plain_lstm(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  PlainArguments arguments;
  TORCH_CHECK_TYPE(count * sizeof(PyObject*) == sizeof arguments, "expected ",
                   sizeof arguments / sizeof(PyObject*), " arguments, got ", count);
  std::memcpy(&arguments, args, sizeof arguments);
  const auto call = plain_call(arguments);
  if (!call) Py_RETURN_NONE;
  auto [output, h_n, c_n, cells, gates] = [&] {
    const WithoutGil others_run;
    return run(*call, {/*save_cells=*/false, /*save_gates=*/false, "auto"});
  }();
  if (arguments.batch_first == Py_True) output = output.transpose(0, 1);
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

inline PyObject* are_described(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  TORCH_CHECK_TYPE(count == 4, "expected 4 arguments, got ", count);
  const Objects weights = items_of(args[0]), names = items_of(args[2]), shapes = items_of(args[3]);
  return PyBool_FromLong(are_parameters(weights, args[1], names) &&
                         std::ranges::equal(weights, shapes, has_shape));
  END_HANDLE_TH_ERRORS
}

}  // namespace fastlstm
