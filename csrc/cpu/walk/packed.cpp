// Calls with packed weights: the forward walk or a single step.
#include "core/packed.h"

#include <ATen/EmptyTensor.h>

#include <algorithm>

#include "core/operators.h"
#include "cpu/walk/forward_walk.h"
#include "cpu/walk/packed_step.h"
#include "cpu/walk/tiled.h"

namespace fastlstm {
namespace {

// Viewing the packed data as a matrix checks its size.
template <typename W>
void check_weights(const Tensor* w, int64_t count, int64_t gates) {
  constexpr auto state = c10::CppTypeToScalarType<State_t<W>>::value;
  for (int64_t k = 0; k < count; ++k)
    TORCH_CHECK(w[k].scalar_type() == (k == 2 ? state : w[0].scalar_type()),
                "lstm_packed: expected matrices of ", w[0].scalar_type(), " and a bias of ", state,
                ", got ", w[k].scalar_type());
  TORCH_CHECK(w[2].is_contiguous() && w[2].numel() == gates, "lstm_packed: expected a bias of ",
              gates, " elements, got ", w[2].sizes());
  check_memory(w[2], "a bias");
}

template <typename W>
std::vector<PackedDirection<W>> view(at::TensorList weights, const Sizes& s) {
  const int64_t each = static_cast<int64_t>(weights.size()) / s.directions;
  const int64_t gates = 4 * s.hidden_size;
  std::vector<PackedDirection<W>> directions;
  for (int64_t d = 0; d < s.directions; ++d) {
    const Tensor* const w = weights.data() + d * each;
    check_weights<W>(w, each, gates);
    directions.push_back({view_packed<W>(w[0], gates, s.input_size, WeightRole::kToGates),
                          view_packed<W>(w[1], gates, s.output_size, WeightRole::kToGates),
                          {},
                          order_gates<W>(w[2])});
    if (each == 4)
      directions.back().w_hr.emplace(
          view_packed<W>(w[3], s.output_size, s.hidden_size, WeightRole::kProjection));
  }
  return directions;
}

template <typename T, typename W>
PackedResult one_step(const Layer& layer, const std::vector<PackedDirection<W>>& weights) {
  using A = State_t<T>;
  const Sizes s = layer.sizes();
  const Tensor x = layer.input.contiguous(), h_0 = layer.h_0.contiguous();
  const Tensor c_0 = layer.c_0.to(layer.state_options()).contiguous();
  Tensor output = at::empty({1, s.batch, s.directions * s.output_size}, layer.input.options());
  Tensor c_n = at::empty({s.directions, s.batch, s.hidden_size}, layer.state_options());
  Tensor h_n = at::empty({s.directions, s.batch, s.output_size}, layer.input.options());
  for (int64_t d = 0; d < s.directions; ++d) {
    const int64_t row = d * s.batch;
    T* const h = data<T>(h_n) + row * s.output_size;
    PackedStep<T, W>(s, weights[d], const_data<T>(x), const_data<T>(h_0) + row * s.output_size,
                     const_data<A>(c_0) + row * s.hidden_size, h, s.output_size,
                     data<A>(c_n) + row * s.hidden_size)
        .run();
    for (int64_t b = 0; b < s.batch; ++b)
      std::copy_n(h + b * s.output_size, s.output_size,
                  data<T>(output) + (b * s.directions + d) * s.output_size);
  }
  return {output, h_n, c_n, at::empty({0}, layer.state_options())};
}

template <typename T, typename W>
PackedResult forward(const LstmCall& call, const Layer& layer, const CpuPlan& plan,
                     bool save_cells) {
  const auto weights = view<W>(call.weights, layer.sizes());
  if constexpr (!kWidens<T, W>)
    if (plan.one_step) return one_step<T, W>(layer, weights);
  const Rows rows(layer);
  const ForwardTensors<T> to(layer, rows, save_cells, /*save_gates=*/false);
  walk_forward<T, W>(layer, plan, rows, to, weights);
  return {to.output, to.h_n, to.c_n, to.cells};
}

PackedResult by_dtype(const LstmCall& call, const Layer& layer, const CpuPlan& plan,
                      bool save_cells) {
  switch (plan.product) {
    case Dtype::kFloat64:
      return forward<double, double>(call, layer, plan, save_cells);
    case Dtype::kFloat32:
      if (plan.dtype == Dtype::kFloat16)
        return forward<float16, float>(call, layer, plan, save_cells);
      return forward<float, float>(call, layer, plan, save_cells);
    case Dtype::kBFloat16:
      if (plan.dtype == plan.product)
        return forward<bfloat16, bfloat16>(call, layer, plan, save_cells);
      return forward<float, bfloat16>(call, layer, plan, save_cells);
    default:
      return forward<float, int8>(call, layer, plan, save_cells);
  }
}

size_t weights_of_one(const LstmCall& call) { return call.weights.size() / call.h_0.size(0); }

PackedResult packed_lstm(const LstmCall& call, const Layer& layer, bool save_cells) {
  const auto weights = call.weights[0].scalar_type(), dtype = layer.input.scalar_type();
  TORCH_CHECK(weights == at::kDouble || weights == at::kFloat || weights == at::kBFloat16 ||
                  weights == at::kChar,
              "lstm_packed: expected packed weights, got ", weights);
  CpuTask task = task_of(layer);
  task.packed_weights = dtype_of(weights), task.saves = save_cells;
  task.projects = weights_of_one(call) == 4;
  const CpuPlan plan = fastlstm::plan(task, cpu_machine());
  if (plan.dtype == task.dtype) return by_dtype(call, layer, plan, save_cells);
  auto [output, h_n, c_n, cells] = by_dtype(call, as_float(layer), plan, save_cells);
  return {output.to(dtype), h_n.to(dtype), c_n, cells};
}

bool is_ready(const Tensor& tensor, int64_t rows, int64_t columns) {
  return tensor.scalar_type() == at::kFloat && tensor.device().is_cpu() && tensor.is_contiguous() &&
         tensor.size(-2) == rows && tensor.size(-1) == columns &&
         tensor.numel() == rows * columns &&
         tensor.storage().nbytes() >= tensor.nbytes() + tensor.storage_offset() * sizeof(float);
}

template <typename W>
StepResult step_of_floats(const StepCall& call, const Sizes& sizes) {
  const auto weights = view<W>(call.weights, sizes);
  const auto empty_like = [](const Tensor& t) {
    return Tensor(at::detail::empty_cpu(t.sizes(), at::TensorOptions(at::kFloat)));
  };
  const Tensor h = empty_like(call.h), c = empty_like(call.c);
  PackedStep<float, W>(sizes, weights[0], const_data<float>(call.input), const_data<float>(call.h),
                       const_data<float>(call.c), data<float>(h), sizes.output_size, data<float>(c))
      .run();
  return StepResult({h, c});
}

}  // namespace

StepResult lstm_packed_step(const StepCall& call) {
  const Tensor &x = call.input, &h = call.h, &c = call.c;
  if (x.dim() < 2 || h.dim() < 2 || c.dim() < 2 || x.numel() == 0) return std::nullopt;
  const int64_t batch = x.size(-2), H = c.size(-1), P = h.size(-1);
  const Sizes sizes{1, 1, batch, batch, x.size(-1), H, P};
  const bool ready =
      is_ready(x, batch, x.size(-1)) && is_ready(h, batch, P) && is_ready(c, batch, H);
  if (!ready || call.weights.size() != (P == H ? 3 : 4)) return std::nullopt;
  switch (call.weights[0].scalar_type()) {
    case at::kFloat:
      return step_of_floats<float>(call, sizes);
    case at::kBFloat16:
      return step_of_floats<bfloat16>(call, sizes);
    case at::kChar:
      return step_of_floats<int8>(call, sizes);
    default:
      return std::nullopt;
  }
}

PackedResult lstm_packed_cpu(const LstmCall& call, const PackedOptions& options) {
  TORCH_CHECK(packed_layout() == std::string_view(options.layout.data(), options.layout.size()),
              "lstm_packed: expected weights that were packed for this processor (",
              packed_layout(), "), got some for ", options.layout, ": pack the model here");
  const Layer layer = check_packed_layer(call);
  check_values(layer);
  auto [output, h_n, c_n, cells] = weights_of_one(call) > 4
                                       ? packed_layer_norm(call, layer, options.save_cells)
                                       : packed_lstm(call, layer, options.save_cells);
  return {output, h_n, c_n.to(call.c_0.scalar_type()), cells};
}

}  // namespace fastlstm
