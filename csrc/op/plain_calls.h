// Plain calls of the modules: one call from Python runs all layers of an LSTM, or a step of an
// LSTMCell. A call is plain if its arguments are what nn.LSTM takes (besides them lengths and
// reset), its tensors are dense CPU tensors of no subclass and of one dtype, its weights have the
// shapes that the attributes of the module describe, and no tracer, transform, mode or autocast is
// active. Nothing here raises an error before that is decided: a call that is not plain gets
// NotImplemented, and Python runs it or refuses it. After that each error is the call's own.
#pragma once
#include <ATen/ops/dropout.h>
#include <ATen/ops/index_select.h>
#include <ATen/ops/ne.h>
#include <torch/csrc/Dtype.h>
#include <torch/csrc/autograd/forward_grad.h>

#include "op/eager_calls.h"

namespace fastlstm {

inline bool no_mode_is_active() {
  const auto included = c10::impl::tls_local_dispatch_key_set().included_;
  return !included.has(c10::DispatchKey::Tracer) &&
         !included.has(c10::DispatchKey::FuncTorchDynamicLayerFrontMode) &&
         !at::impl::torch_function_mode_enabled() &&
         !c10::impl::TorchDispatchModeTLS::any_modes_set() &&
         !at::autocast::is_autocast_enabled(at::kCPU) &&
         !torch::autograd::ForwardADLevel::try_get_by_idx(0);
}

inline bool is_exact_tensor(PyObject* object) {  // a Tensor or a Parameter, no other class
  auto* const its_class = reinterpret_cast<PyObject*>(Py_TYPE(object));
  return its_class == THPVariableClass || its_class == ParameterClass;
}

// Returns the tensor of an object, or nullptr if the object is no dense CPU tensor.
inline const Tensor* dense_tensor(PyObject* object) {
  if (!is_exact_tensor(object)) return nullptr;
  const Tensor& tensor = THPVariable_Unpack(object);
  return tensor.is_cpu() && tensor.layout() == at::kStrided && !tensor.is_nested() ? &tensor
                                                                                   : nullptr;
}

using Objects = at::ArrayRef<PyObject*>;
// The items of a list or a tuple; none of any other object.
inline Objects items_of(PyObject* object) {
  if (!PyList_CheckExact(object) && !PyTuple_CheckExact(object)) return {};
  return {PySequence_Fast_ITEMS(object), static_cast<size_t>(Py_SIZE(object))};
}

// Whether the weights are the entries of the dict `parameters` with these names.
inline bool are_parameters(Objects weights, PyObject* parameters, Objects names) {
  const auto is_named = [&](PyObject* weight, PyObject* name) {
    return weight == PyDict_GetItem(parameters, name);
  };
  return PyDict_CheckExact(parameters) && std::ranges::equal(weights, names, is_named);
}

// Whether a tuple of Python's integers is this shape.
inline bool is_shape(PyObject* shape, at::IntArrayRef sizes) {
  const auto is_equal = [](PyObject* number, int64_t size) {
    int overflow = 0;
    return PyLong_CheckExact(number) && PyLong_AsLongLongAndOverflow(number, &overflow) == size;
  };
  return std::ranges::equal(items_of(shape), sizes, is_equal);
}

// A new reference to an attribute; nullptr if there is none. Other errors of a property are raised.
inline THPObjectPtr attribute(PyObject* object, PyObject* name) {
  THPObjectPtr value(PyObject_GetAttr(object, name));
  if (!value && !PyErr_ExceptionMatches(PyExc_AttributeError)) throw python_error();
  if (!value) PyErr_Clear();
  return value;
}

template <size_t count>
struct NameOf {
  char text[count];
  consteval NameOf(const char (&name)[count]) { std::ranges::copy(name, text); }
};
template <NameOf name>
THPObjectPtr attribute(PyObject* object) {
  static PyObject* const interned = PyUnicode_InternFromString(name.text);
  return attribute(object, interned);
}

// The size that an object has, if it is an integer (no bool) that a tensor's size can be.
inline std::optional<int64_t> as_size(PyObject* object) {
  if (!object || PyBool_Check(object) || !PyIndex_Check(object)) return {};
  const Py_ssize_t size = PyNumber_AsSsize_t(object, nullptr);  // cut off if it is too large
  if (PyErr_Occurred()) PyErr_Clear();
  return size >= 0 && size <= INT32_MAX ? std::optional<int64_t>(size) : std::nullopt;
}

inline std::optional<bool> as_flag(PyObject* object) {
  return object && PyBool_Check(object) ? std::optional(object == Py_True) : std::nullopt;
}

inline std::optional<double> as_probability(PyObject* object) {
  if (!object || !(PyFloat_Check(object) || PyLong_CheckExact(object))) return {};
  const double p = PyFloat_AsDouble(object);
  if (PyErr_Occurred()) PyErr_Clear();
  return p >= 0 && p <= 1 ? std::optional(p) : std::nullopt;
}

// The attributes of nn.LSTM.
struct LstmAttributes {
  int64_t input_size = 0, hidden_size = 0, output_size = 0, num_layers = 1, directions = 1;
  bool bias = true, batch_first = false;
  double dropout = 0;  // 0 outside of training

  // Nothing if an attribute is missing or has another type: nn.LSTM may raise an error then.
  static std::optional<LstmAttributes> of(PyObject* module) {
    const auto input_size = as_size(attribute<"input_size">(module));
    const auto hidden_size = as_size(attribute<"hidden_size">(module));
    const auto proj_size = as_size(attribute<"proj_size">(module));
    const auto num_layers = as_size(attribute<"num_layers">(module));
    const auto bias = as_flag(attribute<"bias">(module));
    const auto batch_first = as_flag(attribute<"batch_first">(module));
    const auto bidirectional = as_flag(attribute<"bidirectional">(module));
    const auto training = as_flag(attribute<"training">(module));
    const auto dropout = as_probability(attribute<"dropout">(module));
    if (!input_size || !hidden_size || !proj_size || !num_layers || !bias || !batch_first ||
        !bidirectional || !training || !dropout || *num_layers == 0 ||
        (*proj_size > 0 && *proj_size >= *hidden_size))
      return {};
    return LstmAttributes{.input_size = *input_size,
                          .hidden_size = *hidden_size,
                          .output_size = *proj_size > 0 ? *proj_size : *hidden_size,
                          .num_layers = *num_layers,
                          .directions = *bidirectional ? 2 : 1,
                          .bias = *bias,
                          .batch_first = *batch_first,
                          .dropout = *training ? *dropout : 0};
  }
  int64_t size(Extent extent, int64_t layer) const {
    if (extent == Extent::kGates) return 4 * hidden_size;
    if (extent == Extent::kHidden) return hidden_size;
    if (extent == Extent::kInput) return layer ? directions * output_size : input_size;
    return output_size;
  }
};

// Where the weights of a module are: the last argument but one of a plain call, a tuple of Python.
struct WeightSource {
  PyObject* weights;     // a list, or None for all entries of `parameters` with these names
  PyObject* words;       // "", or the words of a layout (WeightLayout)
  PyObject* parameters;  // the dict that has the weights by name; None if they are prepacked
  PyObject* names;       // their names; if they are prepacked, a dict of the shapes by name

  explicit WeightSource(PyObject* tuple) {
    const Objects items = items_of(tuple);
    TORCH_CHECK_TYPE(items.size() == 4, "expected the source of the weights");
    weights = items[0], words = items[1], parameters = items[2], names = items[3];
  }
};

// The weights of all layers with their layout, if they have the shapes that `module` describes and
// the dtype of the input. Prepacked weights belong to a module of that dtype.
struct PlainWeights {
  std::vector<Tensor> tensors;
  WeightLayout layout;

  std::string words() const {
    std::string words;
    const auto add = [&](std::string_view word) {
      words.append(words.empty() || word.empty() ? "" : " ").append(word);
    };
    add(layout.bias ? "bias" : ""), add(layout.projects ? "projection" : "");
    add(layout.normalizes ? "layer_norm" : ""), add(layout.format);
    return words;
  }
  bool are_prepacked() const { return !layout.format.empty(); }

  static std::optional<PlainWeights> of(Objects objects, const WeightSource& source,
                                        const LstmAttributes& module, at::ScalarType dtype) {
    PlainWeights weights;
    weights.layout = WeightLayout::of(THPUtils_unpackStringView(source.words));
    weights.layout.bias = module.bias;
    weights.layout.projects = module.output_size != module.hidden_size;
    const int64_t count = module.directions * weights.layout.weights_per_direction();
    if (static_cast<int64_t>(objects.size()) != module.num_layers * count) return {};
    const bool are_prepacked = weights.are_prepacked();
    if (are_prepacked && PyDict_Size(source.names) != std::ssize(objects)) return {};
    weights.tensors.reserve(objects.size());
    Py_ssize_t position = 0;
    auto next = objects.begin();
    for (int64_t k = 0; k < module.num_layers; ++k)
      for (int64_t d = 0; d < module.directions; ++d)
        for (const NamedWeight& weight : kWeights) {
          if (!(weights.layout.*weight.is_there)) continue;
          const Tensor* const tensor = dense_tensor(*next++);
          if (!tensor) return {};
          c10::SmallVector<int64_t, 2> sizes{module.size(weight.rows, k)};
          if (weight.is_matrix()) sizes.push_back(module.size(weight.columns, k));
          PyObject* shape = nullptr;
          if (are_prepacked) PyDict_Next(source.names, &position, nullptr, &shape);
          if (are_prepacked ? !is_shape(shape, sizes)
                            : tensor->sizes() != sizes || tensor->scalar_type() != dtype)
            return {};
          weights.tensors.push_back(*tensor);
        }
    return weights;
  }
};

inline bool is_computed(at::ScalarType type) {
  return type == at::kFloat || type == at::kDouble || type == at::kBFloat16 || type == at::kHalf;
}

// Whether `input` has a dtype that the module takes. The dtype of other weights is compared later.
inline bool takes_dtype(PyObject* module, const WeightSource& source, at::ScalarType dtype) {
  if (source.parameters != Py_None) return is_computed(dtype);
  auto own = attribute<"dtype">(module);
  return own && THPDtype_Check(own.get()) &&
         reinterpret_cast<THPDtype*>(own.get())->scalar_type == dtype;
}

// A plain call of an LSTM, as Python gave it: unbatched, or batch first, or packed.
struct PlainCall {
  LstmAttributes module;
  PlainWeights weights;
  Tensor input;
  OptionalTensor h_0, c_0, lengths, reset, batch_sizes, sorted_indices, unsorted_indices;
  bool is_batched = true;

  int64_t batch_dim() const { return module.batch_first ? 0 : 1; }
  int64_t batch() const {
    if (batch_sizes) return *batch_sizes->const_data_ptr<int64_t>();
    return is_batched ? input.size(batch_dim()) : 1;
  }
};

struct PlainResults {
  Tensor output, h_n, c_n;
};

// Runs the layers one after the other. The steps are the first dimension.
inline PlainResults run_layers(const PlainCall& plain, LstmCall call) {
  const auto& [module, weights, input, h_0, c_0, lengths, reset, sizes, sorted, unsorted, batched] =
      plain;
  const int64_t directions = module.directions, batch = plain.batch();
  const auto per_layer = static_cast<int64_t>(weights.tensors.size()) / module.num_layers;
  PlainResults results{call.input, {}, {}};
  std::vector<Tensor> all_h, all_c;
  for (int64_t k = 0; k < module.num_layers; ++k) {
    if (k > 0 && module.dropout > 0)
      results.output = at::dropout(results.output, module.dropout, /*train=*/true);
    LstmCall layer = k + 1 == module.num_layers ? std::move(call) : call;
    layer.input = results.output;
    const auto first = weights.tensors.begin() + k * per_layer;
    layer.weights.assign(first, first + per_layer);
    if (!layer.h_0.defined()) {
      set_zero_state(layer, directions, batch, module.hidden_size, module.output_size);
    } else if (module.num_layers > 1) {
      for (Tensor* const state : {&layer.h_0, &layer.c_0})
        *state = state->slice(0, k * directions, (k + 1) * directions);
    }
    auto [output, h_n, c_n, cells, gates] = call_eagerly(std::move(layer), {.engine = "auto"});
    results.output = std::move(output);
    results.h_n = std::move(h_n), results.c_n = std::move(c_n);
    if (module.num_layers > 1) all_h.push_back(results.h_n), all_c.push_back(results.c_n);
  }
  if (module.num_layers > 1) results.h_n = at::cat(all_h), results.c_n = at::cat(all_c);
  return results;
}

inline PlainResults run(const PlainCall& plain) {
  LstmCall call{plain.input,
                plain.h_0.value_or(Tensor()),
                plain.c_0.value_or(Tensor()),
                {},
                plain.weights.words(),
                plain.batch_sizes,
                plain.lengths,
                plain.reset};
  const int64_t batch_dim = plain.batch_dim();
  if (!plain.is_batched) {
    call.input = call.input.unsqueeze(batch_dim);
    if (call.h_0.defined()) call.h_0 = call.h_0.unsqueeze(1), call.c_0 = call.c_0.unsqueeze(1);
    if (call.lengths) call.lengths = call.lengths->unsqueeze(0);
    if (call.reset) call.reset = call.reset->unsqueeze(batch_dim);
  }
  if (plain.sorted_indices && call.h_0.defined())
    for (Tensor* const state : {&call.h_0, &call.c_0})
      *state = state->index_select(1, *plain.sorted_indices);
  if (call.lengths) call.lengths = call.lengths->to(at::kLong);
  if (call.reset && call.reset->scalar_type() != at::kBool) call.reset = call.reset->ne(0);
  const bool transposes = plain.module.batch_first && !plain.batch_sizes;
  if (transposes) call.input = call.input.transpose(0, 1);
  if (transposes && call.reset) call.reset = call.reset->transpose(0, 1);
  PlainResults results = run_layers(plain, std::move(call));
  if (transposes) results.output = results.output.transpose(0, 1);
  for (Tensor* const state : {&results.h_n, &results.c_n}) {
    if (!plain.is_batched) *state = state->squeeze(1);
    if (plain.unsorted_indices) *state = state->index_select(1, *plain.unsorted_indices);
  }
  if (!plain.is_batched) results.output = results.output.squeeze(batch_dim);
  return results;
}

inline PyObject* packed_sequence_class() {
  static PyObject* const its_class =
      pybind11::object(pybind11::module_::import("torch.nn.utils.rnn").attr("PackedSequence"))
          .release()
          .ptr();
  return its_class;
}

// Whether an object is None, or an index [batch] of rows, which is stored in `index`.
inline bool read_index(PyObject* object, OptionalTensor& index) {
  if (object == Py_None) return true;
  const Tensor* const tensor = dense_tensor(object);
  if (!tensor || tensor->scalar_type() != at::kLong || tensor->dim() != 1) return false;
  index = *tensor;
  return true;
}

// Reads the fields of a PackedSequence, or of a tensor. False if they are not plain.
inline bool read_input(PyObject* object, PlainCall& plain) {
  const bool is_packed = reinterpret_cast<PyObject*>(Py_TYPE(object)) == packed_sequence_class();
  if (is_packed) {
    PyObject* const* const fields = PySequence_Fast_ITEMS(object);
    if (Py_SIZE(object) != 4 || !read_index(fields[1], plain.batch_sizes) || !plain.batch_sizes ||
        plain.batch_sizes->numel() == 0 || !read_index(fields[2], plain.sorted_indices) ||
        !read_index(fields[3], plain.unsorted_indices) ||
        plain.sorted_indices.has_value() != plain.unsorted_indices.has_value())
      return false;
    for (const OptionalTensor& index : {plain.sorted_indices, plain.unsorted_indices})
      if (index && index->numel() != plain.batch()) return false;
    object = fields[0];
  }
  const Tensor* const tensor = dense_tensor(object);
  if (!tensor || (is_packed ? tensor->dim() != 2 : tensor->dim() != 2 && tensor->dim() != 3))
    return false;
  plain.input = *tensor, plain.is_batched = is_packed || tensor->dim() == 3;
  const int64_t step_dim = plain.is_batched && !is_packed && plain.module.batch_first ? 1 : 0;
  return tensor->size(-1) == plain.module.input_size && tensor->size(step_dim) > 0;
}

// Reads h and c of these sizes. False if they are not plain.
inline bool read_state(PyObject* hx, at::ScalarType dtype, at::IntArrayRef h_sizes,
                       at::IntArrayRef c_sizes, OptionalTensor& h, OptionalTensor& c) {
  if (hx == Py_None) return true;
  const Objects states = items_of(hx);
  if (states.size() != 2) return false;
  const Tensor *const given_h = dense_tensor(states[0]), *const given_c = dense_tensor(states[1]);
  if (!given_h || !given_c || given_h->scalar_type() != dtype || given_c->scalar_type() != dtype ||
      given_h->sizes() != h_sizes || given_c->sizes() != c_sizes)
    return false;
  h = *given_h, c = *given_c;
  return true;
}

inline bool read_options(PyObject* lengths, PyObject* reset, PlainCall& plain) {
  if (lengths == Py_None && reset == Py_None) return true;
  if (plain.batch_sizes) return false;
  if (lengths != Py_None) {
    const Tensor* const tensor = dense_tensor(lengths);
    if (!tensor || !at::isIntegralType(tensor->scalar_type(), /*includeBool=*/false)) return false;
    const bool has_shape =
        plain.is_batched ? tensor->sizes() == at::IntArrayRef{plain.batch()} : tensor->dim() == 0;
    if (!has_shape) return false;
    plain.lengths = *tensor;
  }
  if (reset != Py_None) {
    const Tensor* const tensor = dense_tensor(reset);
    const bool is_complex = !tensor || tensor->is_complex();
    if (is_complex || tensor->sizes() != plain.input.sizes().slice(0, plain.is_batched ? 2 : 1) ||
        (tensor->is_floating_point() && tensor->isnan().any().item<bool>()))
      return false;
    plain.reset = *tensor;
  }
  return true;
}

inline PyObject* torch_permute_hidden() {
  static PyObject* const function =
      pybind11::object(pybind11::module_::import("torch.nn").attr("LSTM").attr("permute_hidden"))
          .release()
          .ptr();
  return function;
}

inline bool permutes_as_torch(PyObject* module) {
  auto method = attribute<"permute_hidden">(module);
  return method && PyMethod_Check(method.get()) &&
         PyMethod_GET_FUNCTION(method.get()) == torch_permute_hidden() &&
         PyMethod_GET_SELF(method.get()) == module;
}

inline bool needs_gradient(std::initializer_list<OptionalTensor> tensors) {
  return at::GradMode::is_enabled() &&
         std::ranges::any_of(tensors, [](const auto& t) { return t && t->requires_grad(); });
}

struct PlainArguments {
  PyObject *module, *source, *input, *hx, *lengths, *reset;
};

inline std::optional<PlainCall> plain_call(const PlainArguments& given) {
  if (!no_mode_is_active() || !permutes_as_torch(given.module)) return {};
  const WeightSource source(given.source);
  const auto module = LstmAttributes::of(given.module);
  if (!module) return {};
  PlainCall plain;
  plain.module = *module;
  if (!read_input(given.input, plain)) return {};
  const auto dtype = plain.input.scalar_type();
  if (!takes_dtype(given.module, source, dtype)) return {};
  c10::SmallVector<int64_t, 3> h_sizes{module->num_layers * module->directions};
  if (plain.is_batched) h_sizes.push_back(plain.batch());
  auto c_sizes = h_sizes;
  h_sizes.push_back(module->output_size), c_sizes.push_back(module->hidden_size);
  if (!read_state(given.hx, dtype, h_sizes, c_sizes, plain.h_0, plain.c_0) ||
      !read_options(given.lengths, given.reset, plain))
    return {};
  const Objects objects = items_of(source.weights);
  if (source.parameters != Py_None &&
      !are_parameters(objects, source.parameters, items_of(source.names)))
    return {};  // a weight was replaced, or is parametrized
  auto weights = PlainWeights::of(objects, source, *module, dtype);
  if (!weights) return {};
  if (weights->are_prepacked() && needs_gradient({plain.input, plain.h_0, plain.c_0})) return {};
  plain.weights = std::move(*weights);
  return plain;
}

// A PackedSequence with other data, made without the checks of its class.
inline PyObject* with_data(PyObject* packed, PyObject* data) {
  PyObject* const* const fields = PySequence_Fast_ITEMS(packed);
  THPObjectPtr values(PyTuple_Pack(4, data, fields[1], fields[2], fields[3]));
  THPObjectPtr arguments(PyTuple_Pack(1, values.get()));
  return PyTuple_Type.tp_new(Py_TYPE(packed), arguments.get(), nullptr);
}

inline PyObject* plain_lstm(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  TORCH_CHECK_TYPE(count == 6, "plain_lstm: expected 6 arguments, got ", count);
  const auto plain = plain_call({args[0], args[1], args[2], args[3], args[4], args[5]});
  if (!plain) Py_RETURN_NOTIMPLEMENTED;
  // `plain` has a reference to each tensor until this thread has the GIL again (fast_method.h).
  auto [output, h_n, c_n] = [&] {
    const pybind11::gil_scoped_release no_gil;
    return run(*plain);
  }();
  THPObjectPtr py_state(to_python(std::tuple(std::move(h_n), std::move(c_n))));
  THPObjectPtr py_output(THPVariable_Wrap(std::move(output)));
  if (plain->batch_sizes) py_output = with_data(args[2], py_output);
  return py_output ? PyTuple_Pack(2, py_output.get(), py_state.get()) : nullptr;
  END_HANDLE_TH_ERRORS
}

// A plain step of an LSTMCell. Its sizes are those of the input and of the state.
struct PlainStep {
  PlainWeights weights;
  Tensor input;
  OptionalTensor h, c;
  int64_t hidden_size = 0;
  bool is_batched = true;
};

inline std::optional<PlainStep> plain_step(const PlainArguments& given) {
  const Tensor* const input = dense_tensor(given.input);
  if (!no_mode_is_active() || !input || input->dim() < 1 || input->dim() > 2) return {};
  PlainStep plain;
  plain.input = *input, plain.is_batched = input->dim() == 2;
  const auto dtype = input->scalar_type();
  const WeightSource source(given.source);
  if (!takes_dtype(given.module, source, dtype)) return {};
  // nn.LSTMCell needs hidden_size only to make a state, so it may be missing if hx is given.
  const auto size = as_size(attribute<"hidden_size">(given.module));
  if (!size) return {};
  plain.hidden_size = *size;
  c10::SmallVector<int64_t, 2> sizes;
  if (plain.is_batched) sizes.push_back(input->size(0));
  sizes.push_back(*size);
  if (!read_state(given.hx, dtype, sizes, sizes, plain.h, plain.c)) return {};
  c10::SmallVector<PyObject*, 4> weights;
  const Objects listed = items_of(source.weights), names = items_of(source.names);
  weights.append(listed.begin(), listed.end());
  for (PyObject* const name : names) {
    PyObject* const weight = PyDict_GetItem(source.parameters, name);
    if (!weight) return {};
    weights.push_back(weight);
  }
  if (weights.size() == 4 && weights[2] == Py_None && weights[3] == Py_None) weights.resize(2);
  const LstmAttributes sizes_of_cell{.input_size = input->size(-1),
                                     .hidden_size = *size,
                                     .output_size = *size,
                                     .bias = weights.size() == 4};
  auto found = PlainWeights::of(weights, source, sizes_of_cell, dtype);
  if (!found || (found->are_prepacked() && needs_gradient({plain.input, plain.h, plain.c})))
    return {};
  plain.weights = std::move(*found);
  return plain;
}

inline std::tuple<Tensor, Tensor> run(const PlainStep& plain) {
  Tensor input = plain.input;
  OptionalTensor h = plain.h, c = plain.c;
  if (!plain.is_batched) {
    input = input.unsqueeze(0);
    if (h) h = h->unsqueeze(0), c = c->unsqueeze(0);
  }
  if (!h) h = c = at::zeros({input.size(0), plain.hidden_size}, input.options());
  auto next = lstm_cell(input, h, c, plain.weights.tensors, plain.weights.words(), "auto");
  if (plain.is_batched) return next;
  return {std::get<0>(next).squeeze(0), std::get<1>(next).squeeze(0)};
}

inline PyObject* plain_lstm_cell(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  TORCH_CHECK_TYPE(count == 4, "plain_lstm_cell: expected 4 arguments, got ", count);
  const auto plain = plain_step({args[0], args[1], args[2], args[3], nullptr, nullptr});
  if (!plain) Py_RETURN_NOTIMPLEMENTED;
  return to_python([&] {
    const pybind11::gil_scoped_release no_gil;
    return run(*plain);
  }());
  END_HANDLE_TH_ERRORS
}

inline PyObject* have_names_and_shapes(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  TORCH_CHECK_TYPE(count == 4, "expected 4 arguments, got ", count);
  const Objects weights = items_of(args[0]), names = items_of(args[2]), shapes = items_of(args[3]);
  const auto has_shape = [](PyObject* object, PyObject* shape) {
    return is_exact_tensor(object) && is_shape(shape, THPVariable_Unpack(object).sizes());
  };
  return PyBool_FromLong(are_parameters(weights, args[1], names) &&
                         std::ranges::equal(weights, shapes, has_shape));
  END_HANDLE_TH_ERRORS
}

}  // namespace fastlstm
