// The Python module fastlstm._C. Importing it registers the ops.
#include <torch/csrc/utils/pybind.h>

#include "cpu/gemm/prepacked.h"
#include "cpu/scratch.h"
#include "op/plain_calls.h"
#include "op/planners.h"

namespace py = pybind11;
using namespace py::literals;

template <auto function>
static PyMethodDef method(const char* name, const char* doc, int flags = METH_FASTCALL) {
  const auto untyped = reinterpret_cast<void (*)()>(function);
  return {name, reinterpret_cast<PyCFunction>(untyped), flags, doc};
}

// The version of the functions below. A change of their arguments needs another number here and in
// fastlstm/_build.py, which refuses a module of another version.
constexpr int kInterface = 4;

static PyMethodDef kEagerCalls[] = {
    method<fastlstm::fast_method<&fastlstm::lstm>>(
        "lstm",
        "lstm(input, h_0, c_0, weights, layout, batch_sizes, lengths, reset, h_mask, save_cells, "
        "engine)\n\n"
        "Calls the op lstm or lstm_prepacked. Returns output, h_n, c_n and cells; cells is None "
        "without save_cells. If h_0 and c_0 are None, the state is zeros."),
    method<fastlstm::fast_method<&fastlstm::lstm_cell>>(
        "lstm_cell",
        "lstm_cell(input, h, c, weights, layout, engine)\n\n"
        "Calls the op for one step: input [B,I], h [B,P], c [B,H]; h and c are zeros if they are "
        "None. Returns the new h and c."),
    method<fastlstm::plain_lstm>(
        "plain_lstm",
        "plain_lstm(module, source, input, hx, lengths, reset)\n\n"
        "Calls an LSTM, all its layers. `source` says where the weights are: (weights, words, "
        "parameters, names). Returns the results of nn.LSTM, or NotImplemented if the call is not "
        "plain."),
    method<fastlstm::plain_lstm_cell>(
        "plain_lstm_cell",
        "plain_lstm_cell(module, source, input, hx)\n\n"
        "Calls an LSTMCell in the same way. Returns h and c, or NotImplemented."),
    method<fastlstm::have_names_and_shapes>(
        "have_names_and_shapes",
        "have_names_and_shapes(weights, parameters, names, shapes)\n\n"
        "Whether the weights are the entries of `parameters` with these names, have these shapes "
        "and are of no subclass."),
    {}};

static std::vector<fastlstm::OptionalTensor> gradients_by_python(
    const std::vector<at::Tensor>& result_gradients, const fastlstm::LstmCall& call) {
  const py::gil_scoped_acquire gil;
  const py::object recorded_gradients =
      py::module_::import("fastlstm.engine.by_reference").attr("recorded_gradients");
  return std::apply(recorded_gradients, std::tuple_cat(std::tie(result_gradients), call.as_tuple()))
      .cast<std::vector<fastlstm::OptionalTensor>>();
}

PYBIND11_MODULE(_C, m) {
  // Translates errors as torch does: to Python's class for each kind, without C++ stack frames.
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
        "How a layer without options would run on this processor with these threads and this L2.");
  m.def("persistent_engine_fits", &planners::persistent_engine_fits, "hidden_size"_a, "batch"_a,
        "steps"_a, "directions"_a, "dtype"_a, "training"_a, "sm_count"_a, "capability"_a,
        "Whether the persistent engine can compute a layer on a GPU, which need not be present.");
  m.def("pack_weight", &pack_weight, "A weight packed into panels as this processor reads them");
  m.def("unpack_weight", &unpack_weight, "The weight that pack_weight packed, and its scales");
  m.attr("interface") = kInterface;
  // Found now, by one thread: an import in a first call could release the GIL, and another thread
  // that waits for the result would hold it.
  packed_sequence_class(), torch_permute_hidden();
  PyModule_AddFunctions(m.ptr(), kEagerCalls);
  differentiable_gradients = gradients_by_python;
}
