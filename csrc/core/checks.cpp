// The checks of a call's arguments that all engines share, with their messages.
#include <ATen/EmptyTensor.h>

#include <algorithm>
#include <utility>

#include "core/layer_call.h"

namespace fastlstm {
namespace {

void check_device(const Tensor& tensor, const char* name, const Tensor& input) {
  TORCH_CHECK(tensor.device() == input.device(), "lstm: expected ", name, " on ", input.device(),
              " like input, got ", tensor.device());
}

struct NamedSize {
  const char* name;
  c10::SymInt size;
};
using Shape = c10::SmallVector<NamedSize, 4>;
std::ostream& operator<<(std::ostream& out, const Shape& shape) {
  std::vector<c10::SymInt> sizes;
  for (const NamedSize& dimension : shape) {
    out << (sizes.empty() ? "(" : ", ") << dimension.name;
    sizes.push_back(dimension.size);
  }
  return out << ") = " << c10::SymIntArrayRef(sizes);
}

NamedSize size_of(const LayerCall& layer, Extent extent) {
  if (extent == Extent::kGates) return {"4 * hidden_size", 4 * layer.hidden_size};
  if (extent == Extent::kInput) return {"input_size", layer.input_size};
  if (extent == Extent::kHidden) return {"hidden_size", layer.hidden_size};
  if (extent == Extent::kProjection) return {"proj_size", layer.output_size};
  if (extent == Extent::kOutput) return {"output size", layer.output_size};
  return {"directions * output size", layer.num_directions() * layer.output_size};
}

// The dimensions of a tensor before its last one: [D,B] for kState; [T,B] or [R] for
// kAllDirections, whose last dimension is D * P; [D,T,B] or [D,R] for kPerDirection.
enum class Leading { kState, kAllDirections, kPerDirection };
Shape shape_of(const LayerCall& layer, Leading leading, Extent last) {
  Shape shape;
  const bool has_packed_rows = leading != Leading::kState && layer.packed();
  if (leading != Leading::kAllDirections) shape.push_back({"directions", layer.num_directions()});
  if (has_packed_rows) shape.push_back({"packed rows", layer.flat_rows});
  if (leading != Leading::kState && !has_packed_rows) shape.push_back({"steps", layer.steps});
  if (!has_packed_rows) shape.push_back({"batch", layer.batch});
  shape.push_back(size_of(layer, last));
  return shape;
}

Shape shape_of(const LayerCall& layer, const NamedWeight& weight) {
  Shape shape{size_of(layer, weight.rows)};
  if (weight.is_matrix()) shape.push_back(size_of(layer, weight.columns));
  return shape;
}

void check_tensor(const Tensor& tensor, const char* name, const Shape& shape, at::ScalarType dtype,
                  const Tensor& input) {
  const auto sizes = tensor.sym_sizes();
  TORCH_CHECK(std::ranges::equal(sizes, shape, {}, {}, &NamedSize::size), "lstm: expected ", name,
              " of shape ", shape, ", got ", sizes);
  check_device(tensor, name, input);
  TORCH_CHECK(tensor.scalar_type() == dtype, "lstm: expected ", name, " of dtype ", dtype,
              dtype == input.scalar_type() ? " like input" : "", ", got ", tensor.scalar_type());
}

// Finds hidden_size and output_size in the shapes of the first direction's weights. Prepacked
// matrices are tensors of bytes, so for them the shapes of h_0 and c_0 decide.
void set_hidden_sizes(LayerCall& layer) {
  if (layer.is_prepacked()) {
    TORCH_CHECK(layer.c_0.dim() == 3, "lstm: expected c_0 to have 3 dimension(s), got shape ",
                layer.c_0.sym_sizes());
    layer.hidden_size = layer.c_0.sym_size(2);
    layer.output_size = layer.h_0.sym_size(2);
    TORCH_CHECK(layer.projects() || layer.output_size == layer.hidden_size,
                "lstm: expected h_0 and c_0 of the same size without W_hr, got ", layer.output_size,
                " and ", layer.hidden_size);
    return;
  }
  const Tensor &w_ih = layer.directions[0].w_ih, &w_hr = layer.directions[0].w_hr;
  TORCH_CHECK(w_ih.dim() == 2 && w_ih.sym_size(0) % 4 == 0,
              "lstm: expected W_ih of shape (4 * hidden_size, input_size), got ", w_ih.sym_sizes());
  layer.hidden_size = w_ih.sym_size(0) / 4;
  layer.output_size = w_hr.defined() ? w_hr.sym_size(0) : layer.hidden_size;
}

void check_weights(const LayerCall& layer) {
  const auto input = layer.input.scalar_type();
  const auto dtype = layer.is_prepacked() ? state_dtype(input) : input;
  for (const Direction& w : layer.directions)
    for (const NamedWeight& weight : kWeights) {
      const Tensor& tensor = w.*weight.tensor;
      if (!tensor.defined()) continue;
      if (layer.is_prepacked() && weight.is_matrix())
        check_device(tensor, weight.name, layer.input);
      else
        check_tensor(tensor, weight.name, shape_of(layer, weight), dtype, layer.input);
    }
}

void check_input(const LstmCall& call) {
  const Tensor& input = call.input;
  dtype_of(input.scalar_type());
  TORCH_CHECK(input.dim() == (call.batch_sizes ? 2 : 3), "lstm: expected input of shape ",
              call.batch_sizes ? "(packed rows, input_size), since batch_sizes is given"
                               : "(steps, batch, input_size)",
              ", got ", input.sym_sizes());
  TORCH_CHECK(call.h_0.dim() == 3 && (call.h_0.sym_size(0) == 1 || call.h_0.sym_size(0) == 2),
              "lstm: expected h_0 of shape (1 or 2 directions, batch, output size), got ",
              call.h_0.sym_sizes());
  if (!call.batch_sizes) return;
  const Tensor& sizes = *call.batch_sizes;
  TORCH_CHECK(sizes.dim() == 1 && sizes.scalar_type() == at::kLong &&
                  (sizes.device().is_cpu() || input.is_meta()),
              "lstm: expected batch_sizes of shape (steps), dtype int64, on the CPU, as in a "
              "PackedSequence, got ",
              sizes.sym_sizes(), " ", sizes.scalar_type(), " on ", sizes.device());
  TORCH_CHECK(!call.lengths && !call.reset, "lstm: ", call.lengths ? "lengths" : "reset",
              " cannot be combined with batch_sizes (packed input)");
}

// Sets all sizes except hidden_size and output_size, which set_hidden_sizes sets.
LayerCall to_layer_call(LstmCall call, bool allows_prepacked) {
  LayerCall layer;
  static_cast<LstmCall&>(layer) = std::move(call);
  layer.weight_layout = WeightLayout::of(layer.layout);
  TORCH_CHECK(allows_prepacked || !layer.is_prepacked(),
              "lstm: expected layout to be of the words bias, projection, layer_norm, in this "
              "order, got \"",
              layer.layout, "\"");
  layer.directions = layer.weight_layout.directions(std::exchange(layer.weights, {}),
                                                    layer.h_0.sym_size(0).expect_int());
  layer.input_size = layer.input.sym_size(-1);
  layer.steps = layer.packed() ? layer.batch_sizes->sym_size(0) : layer.input.sym_size(0);
  layer.batch = (layer.packed() ? layer.h_0 : layer.input).sym_size(1);
  layer.flat_rows = layer.packed() ? layer.input.sym_size(0) : layer.steps * layer.batch;
  return layer;
}

void check_batch_sizes(const LayerCall& layer) {
  const Tensor sizes = layer.batch_sizes->contiguous();
  const int64_t* size = sizes.const_data_ptr<int64_t>();
  int64_t total = 0, previous = layer.batch.expect_int();
  for (int64_t t = 0; t < sizes.size(0); total += previous, ++t) {
    TORCH_CHECK(size[t] > 0 && size[t] <= previous && (t > 0 || size[t] == previous),
                "lstm: expected batch_sizes to start with the batch size ", layer.batch,
                " and never to grow or fall below 1, got ", size[t], " at step ", t);
    previous = size[t];
  }
  TORCH_CHECK(total == layer.flat_rows,
              "lstm: expected batch_sizes to sum to input.size(0) = ", layer.flat_rows, ", got ",
              total);
}

}  // namespace

LayerCall check_layer(LstmCall call, bool allows_prepacked) {
  check_input(call);
  LayerCall layer = to_layer_call(std::move(call), allows_prepacked);
  set_hidden_sizes(layer);
  check_weights(layer);
  TORCH_CHECK(layer.steps > 0, "Expected sequence length to be larger than 0 in RNN");
  const Tensor& input = layer.input;
  const auto dtype = input.scalar_type(), c_dtype = layer.c_0.scalar_type();
  const auto h_shape = shape_of(layer, Leading::kState, Extent::kOutput);
  check_tensor(layer.h_0, "h_0", h_shape, dtype, input);
  check_tensor(layer.c_0, "c_0", shape_of(layer, Leading::kState, Extent::kHidden),
               c_dtype == state_dtype(dtype) ? c_dtype : dtype, input);
  const NamedSize steps{"steps", layer.steps}, batch{"batch", layer.batch};
  if (layer.lengths) check_tensor(*layer.lengths, "lengths", {batch}, at::kLong, input);
  if (layer.reset) check_tensor(*layer.reset, "reset", {steps, batch}, at::kBool, input);
  if (layer.h_mask) check_tensor(*layer.h_mask, "h_mask", h_shape, dtype, input);
  return layer;
}

void check_backward(const LayerCall& layer, const BackwardArguments& a) {
  TORCH_CHECK(!a.request.return_d_gates || !layer.normalizes(),
              "lstm_backward: expected no layer normalization with return_d_gates");
  const auto expect = [&](const OptionalTensor& tensor, const char* name, Leading leading,
                          Extent last, at::ScalarType dtype) {
    if (!tensor) return;
    check_tensor(*tensor, name, shape_of(layer, leading, last), dtype, layer.input);
    check_memory(*tensor, name);
  };
  const auto dtype = layer.input.scalar_type(), cell_dtype = state_dtype(dtype);
  expect(a.output, "the saved output", Leading::kAllDirections, Extent::kAllOutputs, dtype);
  expect(a.cells, "the saved cells", Leading::kPerDirection, Extent::kHidden, cell_dtype);
  expect(a.gates, "the saved gates", Leading::kPerDirection, Extent::kGates, dtype);
  expect(a.grad_output, "grad_output", Leading::kAllDirections, Extent::kAllOutputs, dtype);
  expect(a.grad_h_n, "grad_h_n", Leading::kState, Extent::kOutput, dtype);
  expect(a.grad_c_n, "grad_c_n", Leading::kState, Extent::kHidden, layer.c_0.scalar_type());
  expect(a.grad_cells, "grad_cells", Leading::kPerDirection, Extent::kHidden, cell_dtype);
}

void check_memory(const Tensor& tensor, const char* name) {
  if (tensor.is_meta()) return;
  const size_t needed = at::detail::computeStorageNbytes(
      tensor.sizes(), tensor.strides(), tensor.dtype().itemsize(), tensor.storage_offset());
  const size_t present = tensor.storage().data() ? tensor.storage().nbytes() : size_t{0};
  TORCH_CHECK(present >= needed, "lstm: expected ", name, " of shape ", tensor.sizes(), " to have ",
              needed, " bytes of memory, got ", present);
}

void check_values(const LayerCall& layer) {
  for_each_non_weight(layer, check_memory);
  for (const Direction& w : layer.directions) for_each_weight(w, check_memory);
  if (layer.packed()) check_batch_sizes(layer);
  if (layer.lengths && layer.lengths->device().is_cpu()) {
    const Tensor lengths = layer.lengths->contiguous();
    const int64_t* length = lengths.const_data_ptr<int64_t>();
    for (int64_t b = 0; b < lengths.size(0); ++b)
      TORCH_CHECK(length[b] >= 0 && length[b] <= layer.steps,
                  "lstm: expected lengths between 0 and the number of steps ", layer.steps,
                  ", got ", length[b], " for batch row ", b);
  }
}

}  // namespace fastlstm
