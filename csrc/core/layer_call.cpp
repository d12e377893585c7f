#include "core/layer_call.h"

#include <ATen/OpMathType.h>

#include "core/operators.h"

namespace fastlstm {

Sizes LayerCall::sizes() const {
  return {num_directions(),        steps.expect_int(),      batch.expect_int(),
          flat_rows.expect_int(),  input_size.expect_int(), hidden_size.expect_int(),
          output_size.expect_int()};
}

std::vector<c10::SymInt> LayerCall::sequence_shape(const c10::SymInt& size,
                                                   bool per_direction) const {
  std::vector<c10::SymInt> shape;
  if (per_direction) shape.push_back(num_directions());
  if (packed())
    shape.push_back(flat_rows);
  else
    shape.insert(shape.end(), {steps, batch});
  shape.push_back(size);
  return shape;
}

at::TensorOptions LayerCall::state_options() const {
  return input.options().dtype(state_dtype(input.scalar_type()));
}

ForwardTensors::ForwardTensors(const LayerCall& layer, bool save_cells, bool save_gates,
                               bool copies_state) {
  const auto options = layer.input.options(), state = layer.state_options();
  const auto sequence = [&](const c10::SymInt& size, bool per_direction, const auto& options) {
    return at::empty_symint(layer.sequence_shape(size, per_direction), options);
  };
  output = sequence(layer.num_directions() * layer.output_size, false, options);
  if (save_cells) cells = sequence(layer.hidden_size, true, state);
  if (save_gates) gates = sequence(4 * layer.hidden_size, true, options);
  if (copies_state) {
    h_n = layer.h_0.clone(at::MemoryFormat::Contiguous);
    c_n = layer.c_0.to(state, /*non_blocking=*/false, /*copy=*/true).contiguous();
  } else {
    h_n = at::empty_symint(layer.h_0.sym_sizes(), options);
    c_n = at::empty_symint(layer.c_0.sym_sizes(), layer.c_0.options());
  }
}

std::string LayerCall::options() const {
  std::string names;
  const auto add = [&](bool is_there, const char* name) {
    if (is_there) names += names.empty() ? name : std::string(", ") + name;
  };
  add(projects(), "proj_size");
  add(h_mask.has_value(), "recurrent dropout");
  add(normalizes(), "layer normalization");
  return names;
}

LayerCall as_float(const LayerCall& original) {
  LayerCall layer = original;
  const auto convert = [](Tensor& tensor, const char*) {
    if (tensor.is_floating_point()) tensor = tensor.to(at::kFloat);
  };
  for_each_tensor(layer, convert);
  for (Direction& d : layer.directions) for_each_weight(d, convert);
  return layer;
}

std::vector<WalkStep> walk(const LayerCall& layer, bool reverse) {
  const int64_t steps = layer.steps.expect_int(), batch = layer.batch.expect_int();
  std::vector<WalkStep> walk(steps);
  const Tensor sizes = layer.packed() ? layer.batch_sizes->contiguous() : Tensor();
  const int64_t* size = layer.packed() ? sizes.const_data_ptr<int64_t>() : nullptr;
  for (int64_t t = 0, offset = 0; t < steps; ++t) {
    const int64_t rows = size ? size[t] : batch;
    walk[reverse ? steps - 1 - t : t] = {t, offset, rows, 0, 0};
    offset += rows;
  }
  for (int64_t k = 1; k < steps; ++k) {
    walk[k].prev_offset = walk[k - 1].offset;
    walk[k].prev_rows = walk[k - 1].rows;
  }
  return walk;
}

Dtype dtype_of(at::ScalarType dtype) {
  switch (dtype) {
    case at::kDouble:
      return Dtype::kFloat64;
    case at::kFloat:
      return Dtype::kFloat32;
    case at::kBFloat16:
      return Dtype::kBFloat16;
    case at::kHalf:
      return Dtype::kFloat16;
    default:
      TORCH_CHECK(false,
                  "lstm: expected input of dtype float32, float64, bfloat16 or float16, got ",
                  dtype);
  }
}

at::ScalarType state_dtype(at::ScalarType dtype) { return at::toOpMathType(dtype); }

}  // namespace fastlstm
