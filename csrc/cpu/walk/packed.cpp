// Calls with packed weights: the walk of a layer, or a single step.
#include "core/packed.h"

#include <ATen/EmptyTensor.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "cpu/gemm/encoded_rows.h"
#include "cpu/layer/packed_direction.h"
#include "cpu/stages/cells.h"
#include "cpu/walk/threads.h"
#include "cpu/walk/tiled.h"

namespace fastlstm {
namespace {

// A dense batch of one step, for one direction. Reading the weights once bounds it; with small
// weights the overhead of the call does.
template <typename T>
class PackedStep {
  using A = State_t<T>;

 public:
  // Where the rows of a step lie: x [B,I], h [B,P] and c [B,H], contiguous.
  struct Memory {
    const T *x, *h_prev;
    const A* c_prev;
    T* h;
    A* c;
  };

  PackedStep(const Sizes& sizes, const CpuPlan& plan, const PackedDirection& w, const Memory& at)
      : s_(sizes),
        w_(w),
        product_(*plan.recurrent),
        grid_(plan.grid),
        h_rows_(row_pointers(at.h, s_.batch, s_.output_size)),
        encoded_x_(product_, s_.batch, s_.input_size),
        encoded_h_(product_, s_.batch, s_.output_size),
        x_(encode(encoded_x_, at.x, s_.input_size)),
        h_prev_(encode(encoded_h_, at.h_prev, s_.output_size)) {
    for (int64_t k = 0; k < grid_.threads(); ++k) cells_.emplace_back(plan, s_.hidden_size);
    if (w_.w_hr) unprojected_ = scratch<T>(s_.batch * s_.hidden_size);
    for (int64_t b = 0; b < s_.batch; ++b)
      rows_.push_back(
          {nullptr, nullptr, at.c_prev + b * s_.hidden_size, at.c + b * s_.hidden_size,
           w_.w_hr ? data<T>(unprojected_) + b * s_.hidden_size : at.h + b * s_.output_size});
  }

  void run() {
    walk_steps(product_, grid_, 1, {0, 1}, w_.w_hr ? 2 : 1,
               [&](int64_t, int64_t, int64_t phase, const Member& member) {
                 if (phase == 0)
                   multiply(cells_[member.index], member.unit_group);
                 else
                   project(w_.w_hr->share(member.unit_group, grid_.unit_groups));
               });
  }

 private:
  std::vector<const void*> encode(const EncodedRows<T>& encoded, const T* rows, int64_t K) const {
    std::vector<const void*> places(s_.batch);
    for (int64_t b = 0; b < s_.batch; ++b) places[b] = encoded.encode(rows + b * K, b);
    return places;
  }

  void multiply(CellsForward<T>& cells, int64_t unit_group) {
    const typename CellsForward<T>::Input input{w_.w_ih, w_.bias_data(), x_.data()};
    cells.run(w_.w_hh, cells.tiles(unit_group, grid_.unit_groups), h_prev_.data(), rows_.data(),
              s_.batch, nullptr, &input);
  }

  void project(const Range& panels) const {
    const EncodedRows<T> encoded(product_, s_.batch, s_.hidden_size);
    multiply_panels(encode(encoded, const_data<T>(unprojected_), s_.hidden_size), s_.batch,
                    *w_.w_hr, panels, h_rows_);
  }

  const Sizes& s_;
  const PackedDirection& w_;
  const Product& product_;
  const ThreadGrid grid_;
  const std::vector<void*> h_rows_;
  const EncodedRows<T> encoded_x_, encoded_h_;
  const std::vector<const void*> x_, h_prev_;
  std::vector<CellsForward<T>> cells_;
  Tensor unprojected_;
  std::vector<ForwardRow<T>> rows_;
};

// Without the dispatcher, whose overhead a small step would notice.
Tensor uninitialized_like(const Tensor& t) { return at::detail::empty_cpu(t.sizes(), t.options()); }

template <typename A>
StepResult run_step(const Product& product, const StepCall& call, const Direction& weights,
                    const Sizes& sizes) {
  const Tensor h = uninitialized_like(call.h), c = uninitialized_like(call.c);
  const auto packed = view_direction<A>(product, weights, sizes);
  CpuTask task = task_of(call.input.scalar_type(), sizes);
  task.packed_weights = product.format;
  PackedStep<A>(sizes, plan(task, cpu_machine()), packed,
                {const_data<A>(call.input), const_data<A>(call.h), const_data<A>(call.c),
                 data<A>(h), data<A>(c)})
      .run();
  return StepResult({h, c});
}

// Rows [rows,columns], or a 1 in front, as PackedStep takes them; or a vector.
bool is_ready(const Tensor& tensor, at::ScalarType dtype, int64_t rows, int64_t columns) {
  return tensor.scalar_type() == dtype && tensor.device().is_cpu() && tensor.is_contiguous() &&
         (tensor.dim() == 1 || tensor.size(-2) == rows) && tensor.size(-1) == columns &&
         tensor.numel() == rows * columns &&
         tensor.storage().nbytes() >=
             tensor.nbytes() + tensor.storage_offset() * tensor.element_size();
}

PackedResult packed_walk(const Layer& layer, bool save_cells) {
  CpuTask task = task_of(layer);
  task.packed_weights = product_named(layer.layout.format).format, task.saves = save_cells;
  const CpuPlan plan = fastlstm::plan(task, cpu_machine());
  const auto [output, h_n, c_n, cells, gates] = dispatch_dtype(plan.dtype, [&](auto t) {
    return tiled_forward<decltype(t)>(plan.dtype == task.dtype ? layer : as_float(layer), plan,
                                      save_cells, /*save_gates=*/false);
  });
  const auto dtype = layer.input.scalar_type();
  return {output.to(dtype), h_n.to(dtype), c_n, cells};
}

}  // namespace

StepResult lstm_packed_step(const StepCall& call) {
  const Tensor &x = call.input, &h = call.h, &c = call.c;
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
  return dtype == at::kDouble ? run_step<double>(product, call, weights, sizes)
                              : run_step<float>(product, call, weights, sizes);
}

PackedResult lstm_packed_cpu(const LstmCall& call, const PackedOptions& options) {
  const bool options_but_none = call.batch_sizes || call.lengths || call.reset || call.h_mask ||
                                call.zoneout_h || call.zoneout_c || options.save_cells;
  if (!options_but_none && call.input.dim() == 3 && call.h_0.dim() == 3 && call.c_0.dim() == 3)
    if (const auto step =
            lstm_packed_step({call.input, call.h_0, call.c_0, call.weights, call.layout})) {
      const auto& [h_n, c_n] = *step;
      const Tensor output = uninitialized_like(h_n);  // the user may write to either
      std::memcpy(output.mutable_data_ptr(), h_n.const_data_ptr(), h_n.nbytes());
      return {output, h_n, c_n, at::detail::empty_cpu({0}, c_n.options())};
    }
  const Layer layer = check_layer(call, /*packed=*/true);
  check_values(layer);
  const std::string& format = layer.layout.format;
  const auto dtype = call.input.scalar_type();
  TORCH_CHECK((format == "float64") == (dtype == at::kDouble),
              "lstm_packed: expected input that goes with weights in ", format, ", got ", dtype);
  auto [output, h_n, c_n, cells] = layer.normalizes() ? packed_layer_norm(layer, options.save_cells)
                                                      : packed_walk(layer, options.save_cells);
  return {output, h_n, c_n.to(call.c_0.scalar_type()), cells};
}

}  // namespace fastlstm
