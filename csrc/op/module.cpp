// The Python module fastlstm._C. Importing it registers the ops.
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/utils/pybind.h>

#include "core/packed.h"
#include "cpu/scratch.h"
#include "op/planners.h"
#include "op/short_calls.h"

namespace py = pybind11;
using namespace py::literals;

PYBIND11_MODULE(_C, m) {
  // As torch raises errors of C++: without frames of the stack, and some as classes of their own.
  py::register_local_exception_translator([](std::exception_ptr error) {
    try {
      std::rethrow_exception(error);
    } catch (const c10::Error&) {
      torch::translate_exception_to_python(error);
    }
  });
  m.doc() = "Native kernels of fastlstm; the ops are torch.ops.fastlstm.*";
  using namespace fastlstm;
  using no_gil = py::call_guard<py::gil_scoped_release>;
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
  m.def("plan_cuda", &planners::plan_cuda, py::kw_only(), "hidden_size"_a, "batch"_a, "steps"_a,
        "directions"_a, "dtype"_a, "allow_tf32"_a, "backward"_a, "sm_count"_a, "capability"_a,
        "engine"_a = "persistent",
        "How the persistent engine divides a layer's work on a GPU, which need not be present.");
  m.def("free_sms", &free_sms,
        "How many multiprocessors of a GPU are left to other streams: FASTLSTM_FREE_SMS.");
  m.def("lstm", &short_calls::lstm, no_gil(), "torch.ops.fastlstm.lstm without its last result");
  m.def("lstm_cell", &short_calls::lstm_cell, no_gil(),
        "One step; like torch.ops.fastlstm.lstm with T = 1");
  m.def("pack_weight", &pack_weight, "A weight in the panels of this processor");
  m.def("unpack_weight", &unpack_weight, "The opposite of pack_weight");
  m.def("lstm_packed", &short_calls::lstm_packed, no_gil(), "torch.ops.fastlstm.lstm_packed");
  m.def("lstm_cell_packed", &short_calls::lstm_cell_packed, no_gil(),
        "One step; input [B,I], h and c [B,H]");
}
