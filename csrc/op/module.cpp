// The Python module fastlstm._C. Importing it registers the ops.
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/utils/pybind.h>

#include "cpu/gemm/prepacked.h"
#include "cpu/scratch.h"
#include "op/eager_calls.h"
#include "op/fast_method.h"
#include "op/planners.h"
#include "op/second_derivatives.h"

namespace py = pybind11;
using namespace py::literals;

template <auto function>
static PyMethodDef method(const char* name, const char* doc) {
  const auto untyped = reinterpret_cast<void (*)()>(function);
  return {name, reinterpret_cast<PyCFunction>(untyped), METH_FASTCALL, doc};
}

// The version of the functions below. A change of their arguments needs another number here and in
// fastlstm/_build.py, which refuses a module of another version.
constexpr int kInterface = 1;

static PyMethodDef kEagerCalls[] = {
    method<fastlstm::fast_method<&fastlstm::lstm>>(
        "lstm",
        "lstm(input: Tensor, h_0: Tensor | None, c_0: Tensor | None, weights: list, layout: str, "
        "batch_sizes: Tensor | None, lengths: Tensor | None, reset: Tensor | None, "
        "h_mask: Tensor | None, save_cells: bool, engine: str) -> tuple\n\n"
        "torch.ops.fastlstm.lstm, or lstm_prepacked, without the last result; cells are None if "
        "they "
        "are not saved, and a state that is None is zeros."),
    method<fastlstm::fast_method<&fastlstm::lstm_cell>>(
        "lstm_cell",
        "lstm_cell(input: Tensor, h: Tensor | None, c: Tensor | None, weights: list, layout: str, "
        "engine: str) -> tuple\n\nOne step: input [B,I], h and c [B,H]."),
    method<fastlstm::plain_lstm>(
        "plain_lstm",
        "plain_lstm(input, hx, weights, layout: str, parameters: dict, names, lengths, reset, "
        "input_size: int, hidden_size: int, proj_size: int, num_layers: int, bias: bool, "
        "bidirectional: bool, batch_first: bool, dropout: float)\n\nA call of one layer as its "
        "module gets it; None if it is not plain, or if the weights are not the parameters of "
        "these names."),
    method<fastlstm::are_plain>("are_plain",
                                "are_plain(*tensors) -> bool\n\nWhether an eager call of these "
                                "tensors, lists of tensors and "
                                "None concerns nothing but the CPU's kernels."),
    method<fastlstm::are_described>(
        "are_described",
        "are_described(weights, parameters: dict, names, shapes) -> bool\n\nWhether the weights "
        "are the parameters of these names, of no subclass and of these shapes."),
    {nullptr, nullptr, 0, nullptr}};

static std::vector<fastlstm::OptionalTensor> gradients_by_python(
    const std::vector<at::Tensor>& of_results, const fastlstm::LstmCall& call) {
  const py::gil_scoped_acquire gil;
  const auto of_layer = py::module_::import("fastlstm.engine.second_derivatives").attr("of_layer");
  return std::apply([&](const auto&... arguments) { return of_layer(of_results, arguments...); },
                    call.list())
      .cast<std::vector<fastlstm::OptionalTensor>>();
}

PYBIND11_MODULE(_C, m) {
  // Translates C++ errors as torch does: the message has no stack frames, and each kind of error
  // has its Python class.
  py::register_local_exception_translator([](std::exception_ptr error) {
    try {
      std::rethrow_exception(error);
    } catch (const c10::Error&) {
      torch::translate_exception_to_python(error);
    }
  });
  m.doc() = "Native kernels of fastlstm; the ops are torch.ops.fastlstm.*";
  using namespace fastlstm;
  m.def("build_info", &planners::build_info,
        "What was compiled in, and the instruction set that the CPU kernels use on this machine.");
  m.def("engines", &planners::engines,
        "The engines of the ops by name, and the device types that have each.");
  m.def("release_scratch", &release_scratch,
        "Give back the memory that the CPU engine keeps for its next call; returns the bytes.");
  m.def("plan_cpu", &planners::plan_cpu, py::kw_only(), "dtype"_a, "input_size"_a, "hidden_size"_a,
        "batch"_a, "steps"_a, "directions"_a, "training"_a, "backward"_a, "threads"_a,
        "l2_cache_bytes"_a,
        "How a plain layer would run on this processor, with other threads or caches too.");
  m.def("persistent_engine_fits", &planners::persistent_engine_fits, "hidden_size"_a, "batch"_a,
        "steps"_a, "directions"_a, "dtype"_a, "training"_a, "sm_count"_a, "capability"_a,
        "Whether the persistent engine can divide a layer's work on a GPU that need not be here.");
  m.def("pack_weight", &pack_weight, "A weight packed into panels as this processor reads them");
  m.def("unpack_weight", &unpack_weight, "The weight that pack_weight packed, and its scales");
  m.attr("interface") = kInterface;
  PyModule_AddFunctions(m.ptr(), kEagerCalls);
  differentiable_gradients = gradients_by_python;
}
