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
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "core/call.h"
#include "core/operators.h"
#include "cpu/gemm/prepacked.h"
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
  const auto layout = WeightLayout::of(call.layout);
  const bool prepacked = !layout.format.empty();
  TORCH_CHECK(w.size() >= 2 && (prepacked || (w[0].dim() == 2 && w[1].dim() == 2)),
              "lstm: expected weights that begin with W_ih and W_hh, of 2 dimensions each");
  const auto [gates, output_size] =
      prepacked ? PrepackedHeader::of(w[1]).shape() : std::pair(w[0].size(0), w[1].size(1));
  const auto directions = static_cast<int64_t>(w.size()) / layout.each();
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

// A dense tensor on the CPU and of no subclass, or a list or tuple of such, or None. All that hold
// numbers have one dtype, which the engines compute.
inline bool is_plain(PyObject* object, std::optional<at::ScalarType>& dtype) {
  if (object == Py_None) return true;
  if (PyList_CheckExact(object) || PyTuple_CheckExact(object)) {
    PyObject* const* const items = PySequence_Fast_ITEMS(object);
    return std::all_of(items, items + Py_SIZE(object),
                       [&](PyObject* item) { return is_plain(item, dtype); });
  }
  auto* const its_class = reinterpret_cast<PyObject*>(Py_TYPE(object));
  if (its_class != THPVariableClass && its_class != ParameterClass) return false;
  const at::Tensor& tensor = THPVariable_Unpack(object);
  if (!tensor.is_cpu() || tensor.layout() != at::kStrided || tensor.is_nested()) return false;
  const auto type = tensor.scalar_type();
  if (dtype && (type == at::kBool || type == at::kLong)) return true;  // resets, lengths
  if (!dtype) dtype = type;
  return type == *dtype &&
         (type == at::kFloat || type == at::kDouble || type == at::kBFloat16 || type == at::kHalf);
}

inline bool are_all_plain(at::ArrayRef<PyObject*> objects) {
  std::optional<at::ScalarType> dtype;
  return is_plain_thread() && std::all_of(objects.begin(), objects.end(),
                                          [&](PyObject* each) { return is_plain(each, dtype); });
}

// The call that the arguments of `plain_lstm` in module.cpp make, steps first; nothing where
// something else has to be decided, or to see the call. Prepacked weights give no gradients, and
// are bytes instead of numbers.
inline std::optional<LstmCall> plain_call(PyObject* const* args, bool batch_first) {
  auto layout = from_python<std::string>(args[3], 3);
  const bool prepacked = !WeightLayout::of(layout).format.empty();
  PyObject *const hx = args[1], *const weights = prepacked ? Py_None : args[2];
  const bool has_state = PyTuple_CheckExact(hx) && Py_SIZE(hx) == 2;
  if (!THPVariable_Check(args[0]) || (hx != Py_None && !has_state) ||
      !are_all_plain({args[0], hx, weights, args[9], args[10]}))
    return {};
  const auto tensor = [](PyObject* object) { return from_python<OptionalTensor>(object, 0); };
  OptionalTensor h_0, c_0, lengths = tensor(args[9]), reset = tensor(args[10]);
  if (has_state) h_0 = tensor(PyTuple_GET_ITEM(hx, 0)), c_0 = tensor(PyTuple_GET_ITEM(hx, 1));
  const auto size = [&](int place) { return from_python<int64_t>(args[place], place); };
  const int64_t hidden_size = size(5), output_size = size(6), directions = size(7);
  Tensor input = THPVariable_Unpack(args[0]);
  if (input.dim() != 3 || input.size(2) != size(4)) return {};
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
  return LstmCall{std::move(input),       h_0.value_or(Tensor()),
                  c_0.value_or(Tensor()), from_python<std::vector<Tensor>>(args[2], 2),
                  std::move(layout),      {},
                  std::move(lengths),     std::move(reset)};
}

// The results of nn.LSTM, or None where the call is not plain.
inline PyObject* plain_lstm(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  TORCH_CHECK_TYPE(count == 11, "expected 11 arguments, got ", count);
  const int batch_first = PyObject_IsTrue(args[8]);
  if (batch_first < 0) throw python_error();
  const auto call = plain_call(args, batch_first);
  if (!call) Py_RETURN_NONE;
  auto [output, h_n, c_n, cells, gates] = [&] {
    const WithoutGil others_run;
    return run(with_state(*call), {/*save_cells=*/false, /*save_gates=*/false, "auto"});
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
