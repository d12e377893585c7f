// The Python module fastlstm._C. Importing it registers the ops; build_info() is all it offers.
#include <pybind11/pybind11.h>

#include "cpu/kernels.h"

namespace py = pybind11;

PYBIND11_MODULE(_C, m) {
  m.doc() = "Native kernels of fastlstm; the ops are torch.ops.fastlstm.*";
  m.def(
      "build_info",
      [] {
        py::dict info;
#ifdef FASTLSTM_WITH_CUDA
        info["cuda"] = true;
#else
        info["cuda"] = false;
#endif
        info["cpu_capability"] = fastlstm::kernels().name;
        return info;
      },
      "What was compiled in, and the instruction set that the CPU kernels use on this machine.");
}
