// Calls with packed weights: the walk of a layer, or a single step.
#include "core/packed.h"

#include <ATen/EmptyTensor.h>

#include <cstring>
#include <vector>

#include "cpu/gemm/encoded_rows.h"
#include "cpu/layer/packed_direction.h"
#include "cpu/stages/cells.h"
#include "cpu/walk/threads.h"
#include "cpu/walk/tiled.h"

namespace fastlstm {
namespace {

// Without the dispatcher, whose overhead a small step would notice.
Tensor uninitialized_like(const Tensor& t) { return at::detail::empty_cpu(t.sizes(), t.options()); }

// A dense batch. Reading the weights once bounds it; with small weights the overhead of the call
// does.
template <typename A>
OneStepResult run_one_step(const Product& product, const LstmCall& call, const Direction& weights,
                           const Sizes& s) {
  CpuTask task = task_of(call.input.scalar_type(), s);
  task.packed_weights = product.format;
  const CpuPlan plan = fastlstm::plan(task, cpu_machine());
  const PackedDirection w = view_direction<A>(product, weights, s);
  const int64_t B = s.batch, H = s.hidden_size, P = s.output_size;
  const Tensor h = uninitialized_like(call.h_0), c = uninitialized_like(call.c_0);
  const Tensor unprojected = w.w_hr ? scratch<A>(B * H) : h;
  const auto encoded = [B](const EncodedRows<A>& to, const Tensor& rows, int64_t K) {
    return to.encode(row_pointers(const_data<A>(rows), B, K));
  };
  const EncodedRows<A> x_rows(product, B, s.input_size), h_rows(product, B, P);
  const auto x = encoded(x_rows, call.input, s.input_size), h_prev = encoded(h_rows, call.h_0, P);
  std::vector<ForwardRow<A>> rows;
  for (int64_t b = 0; b < B; ++b)
    rows.push_back({nullptr, nullptr, const_data<A>(call.c_0) + b * H, data<A>(c) + b * H,
                    data<A>(unprojected) + b * H});
  std::vector<CellsForward<A>> cells;
  for (int64_t k = 0; k < plan.grid.threads(); ++k) cells.emplace_back(plan, H);
  const auto work = [&](int64_t, int64_t, int64_t phase, const Member& member) {
    const int64_t group = member.unit_group, groups = plan.grid.unit_groups;
    if (phase == 0) {
      return cells[member.index].run(w, cells[member.index].tiles(group, groups), x.data(),
                                     h_prev.data(), rows.data(), B, nullptr);
    }
    const EncodedRows<A> hidden_rows(product, B, H);
    multiply_panels(encoded(hidden_rows, unprojected, H), B, *w.w_hr, w.w_hr->share(group, groups),
                    row_pointers(data<A>(h), B, P));
  };
  walk_steps(product, plan.grid, 1, {0, 1}, w.w_hr ? 2 : 1, work);
  return OneStepResult({h, c});
}

// Rows [rows,columns], or a 1 in front, as run_one_step takes them; or a vector.
bool is_ready(const Tensor& tensor, at::ScalarType dtype, int64_t rows, int64_t columns) {
  return tensor.scalar_type() == dtype && tensor.device().is_cpu() && tensor.is_contiguous() &&
         (tensor.dim() == 1 || tensor.size(-2) == rows) && tensor.size(-1) == columns &&
         tensor.numel() == rows * columns &&
         tensor.storage().nbytes() >=
             tensor.nbytes() + tensor.storage_offset() * tensor.element_size();
}

}  // namespace

OneStepResult lstm_packed_one_step(const LstmCall& call) {
  const Tensor &x = call.input, &h = call.h_0, &c = call.c_0;
  if (x.dim() < 2 || h.dim() < 2 || c.dim() < 2 || x.numel() == 0) return std::nullopt;
  const auto layout = WeightLayout::of(call.layout);
  const int64_t batch = x.size(-2), H = c.size(-1), P = h.size(-1);
  const Sizes sizes{1, 1, batch, batch, x.size(-1), H, P};
  const auto dtype = layout.format == "float64" ? at::kDouble : at::kFloat;
  if (layout.normalizes || (!layout.projects && P != H) || !is_ready(x, dtype, batch, x.size(-1)) ||
      !is_ready(h, dtype, batch, P) || !is_ready(c, dtype, batch, H) ||
      int64_t(call.weights.size()) != layout.each())
    return std::nullopt;
  const Direction weights = layout.directions(call.weights, 1)[0];
  for (const Tensor* bias : {&weights.b_ih, &weights.b_hh})
    if (bias->defined() && (bias->dim() != 1 || !is_ready(*bias, dtype, 1, 4 * H)))
      return std::nullopt;  // the checks of a call say what is wrong
  const Product& product = product_named(layout.format);
  return dtype == at::kDouble ? run_one_step<double>(product, call, weights, sizes)
                              : run_one_step<float>(product, call, weights, sizes);
}

PackedResult lstm_packed_cpu(LstmCall call, const PackedOptions& options) {
  if (!call.has_options() && !options.save_cells && call.input.dim() == 3 && call.h_0.dim() == 3 &&
      call.c_0.dim() == 3)
    if (const auto step = lstm_packed_one_step(call)) {
      const auto& [h_n, c_n] = *step;
      const Tensor output = uninitialized_like(h_n);  // the user may write to either
      std::memcpy(output.mutable_data_ptr(), h_n.const_data_ptr(), h_n.nbytes());
      return {output, h_n, c_n, Tensor()};
    }
  const Layer layer = check_layer(std::move(call), /*packed=*/true);
  check_values(layer);
  TORCH_CHECK(!layer.normalizes(), "lstm_packed: expected no layer normalization");
  const std::string& format = layer.kinds.format;
  const auto dtype = layer.input.scalar_type();
  TORCH_CHECK((format == "float64") == (dtype == at::kDouble),
              "lstm_packed: expected input that goes with weights in ", format, ", got ", dtype);
  CpuTask task = task_of(layer);
  task.packed_weights = product_named(format).format, task.saves = options.save_cells;
  const auto [output, h_n, c_n, cells, gates] = forward_as_planned(
      layer, plan(task, cpu_machine()), options.save_cells, /*save_gates=*/false);
  return {output, h_n, c_n, cells};
}

}  // namespace fastlstm
