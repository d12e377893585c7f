// Calls with weights that were packed before.
#include "core/prepacked.h"

#include "cpu/gemm/prepacked.h"
#include "cpu/walk/tiled.h"

namespace fastlstm {

PackedResult lstm_packed_cpu(LstmCall call, const PackedOptions& options) {
  const Layer layer = check_layer(std::move(call), /*packed=*/true);
  check_values(layer);
  const std::string& format = layer.kinds.format;
  const auto dtype = layer.input.scalar_type();
  TORCH_CHECK(!layer.normalizes(), "lstm_packed: expected no layer normalization");
  TORCH_CHECK((format == "float64") == (dtype == at::kDouble),
              "lstm_packed: expected input that goes with weights in ", format, ", got ", dtype);
  CpuTask task = task_of(layer);
  task.prepacked = product_named(format).format, task.saves = options.save_cells;
  const auto [output, h_n, c_n, cells, gates] = forward_as_planned(
      layer, plan(task, cpu_machine()), options.save_cells, /*save_gates=*/false);
  return {output, h_n, c_n, cells};
}

}  // namespace fastlstm
