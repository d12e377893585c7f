// Eager calls from Python: functions that call the forward op, and functions that check whether a
// call is plain (op/module.cpp describes them). In Python the checks would take longer than a small
// step. A call is plain if its tensors are dense CPU tensors of no subclass, and if no tracer,
// transform, mode or autocast is active. A call skips the dispatcher if it records no gradient and
// no dispatch key above the CPU kernel is active.
#pragma once
#include <ATen/PythonTorchFunctionTLS.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/grad_mode.h>
#include <ATen/record_function.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>

#include <algorithm>
#include <cstring>
#include <iterator>

#include "core/operators.h"
#include "cpu/lstm_cpu.h"
#include "op/fast_method.h"

namespace fastlstm {

inline bool can_skip_dispatcher(const LstmCall& call) {
  bool needs_grad = false;
  c10::DispatchKeySet keys;
  const auto inspect = [&](const Tensor& tensor, const char* = nullptr) {
    keys = keys | tensor.key_set();
    needs_grad = needs_grad || tensor.requires_grad();
  };
  for_each_non_weight(call, inspect);
  for (const Tensor& weight : call.weights) inspect(weight);
  if (needs_grad && at::GradMode::is_enabled()) return false;
  const auto local = c10::impl::tls_local_dispatch_key_set();
  const auto ignored = c10::autograd_dispatch_keyset_with_ADInplaceOrView |
                       c10::DispatchKeySet(c10::DispatchKey::BackendSelect);
  return ((keys | local.included_) - local.excluded_ - ignored).highestPriorityTypeId() ==
         c10::DispatchKey::CPU;
}

// Calls the op, or its CPU kernel without the dispatcher. Unsaved cells are an undefined tensor.
inline ForwardResult call_eagerly(LstmCall call, const ForwardOptions& options) {
  if (!can_skip_dispatcher(call)) {
    ForwardResult result = call_lstm(call, options);
    if (!options.save_cells) std::get<3>(result) = Tensor();
    return result;
  }
  RECORD_FUNCTION("fastlstm::lstm", std::vector<c10::IValue>());
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  return lstm_cpu(std::move(call), options);
}

// Sets h_0 and c_0 to zeros, which are one tensor if the sizes are equal.
inline void set_zero_state(LstmCall& call, int64_t directions, int64_t batch, int64_t hidden_size,
                           int64_t output_size) {
  const auto zeros = [&](int64_t size) {
    return at::zeros({directions, batch, size}, call.input.options());
  };
  call.c_0 = zeros(hidden_size);
  call.h_0 = output_size == hidden_size ? call.c_0 : zeros(output_size);
}

inline LstmCall fill_state(LstmCall call) {
  TORCH_CHECK(call.h_0.defined() == call.c_0.defined(),
              "lstm: expected h_0 and c_0, or None for both, got one of them");
  if (call.h_0.defined()) return call;
  const auto& w = call.weights;
  TORCH_CHECK(w.size() >= 2 && w[0].dim() == 2 && w[1].dim() == 2,
              "lstm: expected weights that begin with W_ih and W_hh, of 2 dimensions each");
  int64_t batch = 0;  // stays 0 if the input has wrong dimensions: then the op raises an error
  if (call.input.dim() == 3) batch = call.input.size(1);
  if (call.batch_sizes) batch = call.batch_sizes->select(0, 0).item<int64_t>();
  set_zero_state(call, w.size() / WeightLayout::of(call.layout).weights_per_direction(), batch,
                 w[0].size(0) / 4, w[1].size(1));
  return call;
}

inline std::tuple<Tensor, Tensor, Tensor, Tensor> lstm(
    const Tensor& input, const OptionalTensor& h_0, const OptionalTensor& c_0,
    std::vector<Tensor> weights, std::string layout, const OptionalTensor& batch_sizes,
    const OptionalTensor& lengths, const OptionalTensor& reset, const OptionalTensor& h_mask,
    bool save_cells, std::string engine) {
  LstmCall call{input, h_0.value_or(Tensor()), c_0.value_or(Tensor()), std::move(weights),
                std::move(layout)};
  call.batch_sizes = batch_sizes, call.lengths = lengths, call.reset = reset, call.h_mask = h_mask;
  auto [output, h_n, c_n, cells, gates] = call_eagerly(
      fill_state(std::move(call)), {.save_cells = save_cells, .engine = std::move(engine)});
  return {std::move(output), std::move(h_n), std::move(c_n), std::move(cells)};
}

// Returns rows [B,size] as a sequence [1,B,size] of one step.
inline Tensor as_step(const Tensor& rows, bool skips_dispatcher) {
  if (!skips_dispatcher) return rows.unsqueeze(0);
  Tensor step = at::detail::make_tensor<c10::TensorImpl>(
      c10::TensorImpl::VIEW, c10::Storage(rows.storage()), rows.key_set(), rows.dtype());
  c10::SmallVector<int64_t, 4> sizes{1}, strides{rows.numel()};
  sizes.append(rows.sizes().begin(), rows.sizes().end());
  strides.append(rows.strides().begin(), rows.strides().end());
  step.unsafeGetTensorImpl()->set_sizes_and_strides(sizes, strides, rows.storage_offset());
  return step;
}
inline Tensor as_rows(const Tensor& state, bool skips_dispatcher) {
  const c10::SmallVector<int64_t, 4> sizes(state.sizes().begin() + 1, state.sizes().end());
  // A view would lose its autograd hooks if the user wrote it in place. _unsafe_view makes no view.
  if (!skips_dispatcher) return at::_unsafe_view(state, sizes);
  state.unsafeGetTensorImpl()->set_sizes_contiguous(sizes);
  return state;
}

inline std::tuple<Tensor, Tensor> lstm_cell(const Tensor& input, const OptionalTensor& h,
                                            const OptionalTensor& c, std::vector<Tensor> weights,
                                            std::string layout, std::string engine) {
  LstmCall call{input, h.value_or(Tensor()), c.value_or(Tensor()), std::move(weights),
                std::move(layout)};
  const bool skips_dispatcher = can_skip_dispatcher(call);
  // Autograd tracks views even without gradients. That would take as long as a small step.
  std::optional<at::AutoDispatchBelowADInplaceOrView> guard;
  if (!at::GradMode::is_enabled()) guard.emplace();
  for (Tensor* const rows : {&call.input, &call.h_0, &call.c_0})
    if (rows->defined()) *rows = as_step(*rows, skips_dispatcher);
  const auto [output, h_n, c_n, cells, gates] =
      call_eagerly(fill_state(std::move(call)), {.engine = std::move(engine)});
  return {as_rows(h_n, skips_dispatcher), as_rows(c_n, skips_dispatcher)};
}

inline bool no_mode_is_active() {
  const auto included = c10::impl::tls_local_dispatch_key_set().included_;
  return !included.has(c10::DispatchKey::Tracer) &&
         !included.has(c10::DispatchKey::FuncTorchDynamicLayerFrontMode) &&
         !at::impl::torch_function_mode_enabled() &&
         !c10::impl::TorchDispatchModeTLS::any_modes_set() &&
         !at::autocast::is_autocast_enabled(at::kCPU);
}

inline bool is_exact_tensor(PyObject* object) {  // a Tensor or a Parameter, no other class
  auto* const its_class = reinterpret_cast<PyObject*>(Py_TYPE(object));
  return its_class == THPVariableClass || its_class == ParameterClass;
}

// Whether an object is None or a tensor of a plain call. All floating point tensors of a call have
// one dtype, which the first tensor sets.
inline bool is_plain(PyObject* object, std::optional<at::ScalarType>& dtype) {
  if (object == Py_None) return true;
  if (!is_exact_tensor(object)) return false;
  const at::Tensor& tensor = THPVariable_Unpack(object);
  if (!tensor.is_cpu() || tensor.layout() != at::kStrided || tensor.is_nested()) return false;
  const auto type = tensor.scalar_type();
  if (dtype && (type == at::kBool || type == at::kLong)) return true;  // reset, lengths
  if (!dtype) dtype = type;
  return type == *dtype &&
         (type == at::kFloat || type == at::kDouble || type == at::kBFloat16 || type == at::kHalf);
}

using Objects = at::ArrayRef<PyObject*>;
// The items of a list or a tuple; any other object is the only item.
inline Objects items_of(PyObject* const& object) {
  if (!PyList_CheckExact(object) && !PyTuple_CheckExact(object)) return object;
  return {PySequence_Fast_ITEMS(object), static_cast<size_t>(Py_SIZE(object))};
}

// Whether a call of these objects is plain. An object may be a list or a tuple of tensors.
inline bool are_all_plain(Objects objects) {
  std::optional<at::ScalarType> dtype;
  const auto plain = [&](PyObject* item) { return is_plain(item, dtype); };
  return no_mode_is_active() && std::ranges::all_of(objects, [&](PyObject* const& object) {
           return std::ranges::all_of(items_of(object), plain);
         });
}

// Whether the weights are the entries of the dict `parameters` with these names.
inline bool are_parameters(Objects weights, PyObject* parameters, Objects names) {
  const auto is_named = [&](PyObject* weight, PyObject* name) {
    return weight == PyDict_GetItem(parameters, name);
  };
  return PyDict_CheckExact(parameters) && std::ranges::equal(weights, names, is_named);
}

inline bool has_shape(PyObject* object, PyObject* shape) {
  const auto is_equal = [](int64_t size, PyObject* expected) {
    return PyLong_CheckExact(expected) && PyLong_AsLongLong(expected) == size;
  };
  return is_exact_tensor(object) &&
         std::ranges::equal(THPVariable_Unpack(object).sizes(), items_of(shape), is_equal);
}

// The arguments of plain_lstm, which op/module.cpp describes, and their names in the same order.
struct PlainArguments {
  PyObject *input, *hx, *weights, *layout, *parameters, *names, *lengths, *reset, *input_size,
      *hidden_size, *proj_size, *num_layers, *bias, *bidirectional, *batch_first, *dropout;
};
constexpr const char* kPlainNames[] = {
    "input",       "hx",         "weights",     "layout",    "parameters", "names", "lengths",
    "reset",       "input_size", "hidden_size", "proj_size", "num_layers", "bias",  "bidirectional",
    "batch_first", "dropout"};
static_assert(sizeof(PlainArguments) == std::size(kPlainNames) * sizeof(PyObject*));

// Reads the arguments of a Python call, which must name all of them in the order of kPlainNames.
// Other names are a defect of fastlstm's Python files, which do not catch the SystemError.
inline PlainArguments plain_arguments(PyObject* const* values, PyObject* names) {
  static const auto expected = [] {
    std::vector<PyObject*> all;
    for (const char* name : kPlainNames) all.push_back(PyUnicode_InternFromString(name));
    return all;
  }();
  const auto is_equal = [](PyObject* a, PyObject* b) { return PyUnicode_Compare(a, b) == 0; };
  if (!names || !std::ranges::equal(items_of(names), expected, is_equal)) {
    PyErr_Format(PyExc_SystemError, "plain_lstm: other arguments than expected: %R",
                 names ? names : Py_None);
    throw python_error();
  }
  PlainArguments arguments;
  std::memcpy(&arguments, values, sizeof arguments);
  return arguments;
}

// Returns the call of these arguments, with steps as the first dimension. Returns nothing if Python
// must serve the call or raise an error: the call is not plain, has several layers or wrong
// arguments, or needs gradients with prepacked weights.
inline std::optional<LstmCall> plain_call(const PlainArguments& a) {
  LstmCall call;
  call.layout = from_python<std::string>(a.layout, "layout");
  const auto weight_layout = WeightLayout::of(call.layout);
  const bool is_prepacked = !weight_layout.format.empty();
  const bool has_state = PyTuple_CheckExact(a.hx) && Py_SIZE(a.hx) == 2;
  if (from_python<int64_t>(a.num_layers, "num_layers") != 1 ||
      from_python<bool>(a.bias, "bias") != weight_layout.bias || !PyFloat_Check(a.dropout) ||
      !THPVariable_Check(a.input) || (a.hx != Py_None && !has_state) ||
      !are_all_plain({a.input, a.hx, is_prepacked ? Py_None : a.weights, a.lengths, a.reset}) ||
      !(is_prepacked || are_parameters(items_of(a.weights), a.parameters, items_of(a.names))))
    return {};
  call.input = THPVariable_Unpack(a.input);
  call.lengths = from_python<OptionalTensor>(a.lengths, "lengths");
  call.reset = from_python<OptionalTensor>(a.reset, "reset");
  const auto hidden_size = from_python<int64_t>(a.hidden_size, "hidden_size");
  const auto proj_size = from_python<int64_t>(a.proj_size, "proj_size");
  const int64_t output_size = proj_size > 0 ? proj_size : hidden_size;
  const int64_t directions = from_python<bool>(a.bidirectional, "bidirectional") ? 2 : 1;
  const bool batch_first = from_python<bool>(a.batch_first, "batch_first");
  if (call.input.dim() != 3 ||
      call.input.size(2) != from_python<int64_t>(a.input_size, "input_size") ||
      (call.reset && call.reset->sizes() != call.input.sizes().slice(0, 2)))
    return {};
  const int64_t batch = call.input.size(batch_first ? 0 : 1);
  if (has_state) {
    call.h_0 = from_python<Tensor>(PyTuple_GET_ITEM(a.hx, 0), "hx");
    call.c_0 = from_python<Tensor>(PyTuple_GET_ITEM(a.hx, 1), "hx");
    if (call.h_0.sizes() != at::IntArrayRef({directions, batch, output_size}) ||
        call.c_0.sizes() != at::IntArrayRef({directions, batch, hidden_size}))
      return {};
  } else {
    set_zero_state(call, directions, batch, hidden_size, output_size);
  }
  if (is_prepacked && at::GradMode::is_enabled() &&
      (call.input.requires_grad() || call.h_0.requires_grad() || call.c_0.requires_grad()))
    return {};
  if (batch_first) call.input = call.input.transpose(0, 1);
  if (batch_first && call.reset) call.reset = call.reset->transpose(0, 1);
  call.weights = from_python<std::vector<Tensor>>(a.weights, "weights");
  return call;
}

inline PyObject* plain_lstm(PyObject*, PyObject* const* values, Py_ssize_t, PyObject* names) {
  HANDLE_TH_ERRORS
  const PlainArguments arguments = plain_arguments(values, names);
  const auto call = plain_call(arguments);
  if (!call) Py_RETURN_NONE;
  auto [output, h_n, c_n, cells, gates] = [&] {
    const pybind11::gil_scoped_release no_gil;
    return call_eagerly(*call, {.engine = "auto"});
  }();
  if (arguments.batch_first == Py_True) output = output.transpose(0, 1);
  const THPObjectPtr py_state(to_python(std::tuple(std::move(h_n), std::move(c_n))));
  const THPObjectPtr py_output(THPVariable_Wrap(std::move(output)));
  return PyTuple_Pack(2, py_output.get(), py_state.get());
  END_HANDLE_TH_ERRORS
}

inline PyObject* are_plain(PyObject*, PyObject* const* objects, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  return PyBool_FromLong(are_all_plain({objects, static_cast<size_t>(count)}));
  END_HANDLE_TH_ERRORS
}

inline PyObject* have_names_and_shapes(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  TORCH_CHECK_TYPE(count == 4, "expected 4 arguments, got ", count);
  const Objects weights = items_of(args[0]), names = items_of(args[2]), shapes = items_of(args[3]);
  return PyBool_FromLong(are_parameters(weights, args[1], names) &&
                         std::ranges::equal(weights, shapes, has_shape));
  END_HANDLE_TH_ERRORS
}

}  // namespace fastlstm
