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
  std::vector<c10::SymInt> shape = input.sym_sizes().vec();
  shape.back() = size;
  if (per_direction) shape.insert(shape.begin(), num_directions());
  return shape;
}

at::TensorOptions LayerCall::state_options() const {
  return input.options().dtype(state_dtype(input.scalar_type()));
}

ForwardTensors::ForwardTensors(const LayerCall& layer, const ForwardOptions& options) {
  const auto like_input = layer.input.options(), like_state = layer.state_options();
  const auto H = layer.hidden_size, outputs = layer.num_directions() * layer.output_size;
  output = at::empty_symint(layer.sequence_shape(outputs, /*per_direction=*/false), like_input);
  if (options.save_cells) cells = at::empty_symint(layer.sequence_shape(H, true), like_state);
  if (options.save_gates) gates = at::empty_symint(layer.sequence_shape(4 * H, true), like_input);
  h_n = layer.h_0.clone(at::MemoryFormat::Contiguous);
  c_n = at::empty_symint(layer.c_0.sym_sizes(), like_state).copy_(layer.c_0);
}

std::string LayerCall::options_in_use() const {
  std::string names;
  if (projects()) names += ", proj_size";
  if (h_mask) names += ", recurrent dropout";
  if (normalizes()) names += ", layer normalization";
  return names.erase(0, 2);
}

std::vector<WalkStep> walk(const LayerCall& layer, bool reverse) {
  const int64_t steps = layer.steps.expect_int(), batch = layer.batch.expect_int();
  std::vector<WalkStep> walk_steps(steps);
  const Tensor sizes = layer.packed() ? layer.batch_sizes->contiguous() : Tensor();
  const int64_t* size = layer.packed() ? sizes.const_data_ptr<int64_t>() : nullptr;
  for (int64_t t = 0, offset = 0; t < steps; ++t) {
    const int64_t rows = size ? size[t] : batch;
    walk_steps[reverse ? steps - 1 - t : t] = {.t = t, .offset = offset, .rows = rows};
    offset += rows;
  }
  for (int64_t k = 1; k < steps; ++k) {
    walk_steps[k].prev_offset = walk_steps[k - 1].offset;
    walk_steps[k].prev_rows = walk_steps[k - 1].rows;
  }
  return walk_steps;
}

Dtype dtype_of(at::ScalarType dtype) {
  if (dtype == at::kDouble) return Dtype::kFloat64;
  if (dtype == at::kFloat) return Dtype::kFloat32;
  if (dtype == at::kBFloat16) return Dtype::kBFloat16;
  TORCH_CHECK(dtype == at::kHalf,
              "lstm: expected input of dtype float32, float64, bfloat16 or float16, got ", dtype);
  return Dtype::kFloat16;
}

at::ScalarType state_dtype(at::ScalarType dtype) { return at::toOpMathType(dtype); }

}  // namespace fastlstm
