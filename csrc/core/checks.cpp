// The checks of a call, and all messages about its arguments.
#include <ATen/EmptyTensor.h>

#include <algorithm>

#include "core/layer.h"
#include "dtype_list.h"

namespace fastlstm {
namespace {

void check_device(const Tensor& tensor, const char* name, const Tensor& input) {
  TORCH_CHECK(tensor.device() == input.device(), "lstm: expected ", name, " on ", input.device(),
              " like input, got ", tensor.device());
}

// meaning: whatever << takes, so that a message is built only if it is needed.
void check_tensor(const Tensor& tensor, const char* name, c10::SymIntArrayRef shape,
                  const auto& meaning, at::ScalarType dtype, const Tensor& input) {
  TORCH_CHECK(tensor.sym_sizes() == shape, "lstm: expected ", name, " of shape ", meaning, " = ",
              shape, ", got ", tensor.sym_sizes());
  check_device(tensor, name, input);
  TORCH_CHECK(tensor.scalar_type() == dtype, "lstm: expected ", name, " of dtype ", dtype,
              dtype == input.scalar_type() ? " like input" : "", ", got ", tensor.scalar_type());
}

// The meaning of Layer::sequence.
struct SequenceMeaning {
  const Layer& layer;
  const char* size;
  bool per_direction;
};
std::ostream& operator<<(std::ostream& out, const SequenceMeaning& m) {
  return out << (m.per_direction ? "(directions, " : "(")
             << (m.layer.packed() ? "packed rows, " : "steps, batch, ") << m.size << ")";
}
void check_sequence(const Layer& layer, const Tensor& tensor, const char* name,
                    const c10::SymInt& size, const char* meaning, bool per_direction,
                    at::ScalarType dtype) {
  check_tensor(tensor, name, layer.sequence(size, per_direction),
               SequenceMeaning{layer, meaning, per_direction}, dtype, layer.input);
}

// What has the shape of h_0, and of c_0.
void check_h(const Layer& layer, const Tensor& tensor, const char* name) {
  check_tensor(tensor, name, {layer.num_directions(), layer.batch, layer.output_size},
               "(directions, batch, output size)", layer.input.scalar_type(), layer.input);
}
void check_c(const Layer& layer, const Tensor& tensor, const char* name, at::ScalarType dtype) {
  check_tensor(tensor, name, {layer.num_directions(), layer.batch, layer.hidden_size},
               "(directions, batch, hidden_size)", dtype, layer.input);
}

void check_dims(const Tensor& tensor, const char* name, int64_t dims) {
  TORCH_CHECK(tensor.dim() == dims, "lstm: expected ", name, " to have ", dims,
              " dimension(s), got shape ", tensor.sym_sizes());
}

// The sizes of a layer that shapes of weights are made of.
struct Extents {
  c10::SymInt gates, input, hidden, output;

  const c10::SymInt& of(Extent extent) const {
    switch (extent) {
      case Extent::kGates:
        return gates;
      case Extent::kInput:
        return input;
      case Extent::kHidden:
        return hidden;
      default:
        return output;
    }
  }
};

struct ShapeMeaning {
  const NamedWeight& weight;
};
std::ostream& operator<<(std::ostream& out, const ShapeMeaning& m) {
  out << "(" << kExtentNames[int(m.weight.rows)];
  if (m.weight.is_matrix()) out << ", " << kExtentNames[int(m.weight.columns)];
  return out << ")";
}
void check_weight(const NamedWeight& weight, const Tensor& tensor, const Extents& extents,
                  at::ScalarType dtype, const Tensor& input) {
  const auto sizes = tensor.sym_sizes();
  const bool fits = sizes.size() == (weight.is_matrix() ? 2 : 1) &&
                    sizes[0] == extents.of(weight.rows) &&
                    (!weight.is_matrix() || sizes[1] == extents.of(weight.columns));
  if (fits && tensor.scalar_type() == dtype && tensor.device() == input.device()) return;
  std::vector<c10::SymInt> shape{extents.of(weight.rows)};
  if (weight.is_matrix()) shape.push_back(extents.of(weight.columns));
  check_tensor(tensor, weight.name, shape, ShapeMeaning{weight}, dtype, input);
}

void check_direction(const Direction& w, const Tensor& input) {
  for (const NamedWeight& weight : kWeights)
    if (weight.is_matrix() && (w.*weight.tensor).defined())
      check_dims(w.*weight.tensor, weight.name, 2);
  const auto gates = w.w_ih.sym_size(0), hidden = gates / 4;
  TORCH_CHECK(gates % 4 == 0, "lstm: expected W_ih of shape (4 * hidden_size, input_size), got ",
              w.w_ih.sym_sizes());
  const Extents sizes{gates, input.sym_size(-1), hidden,
                      w.w_hr.defined() ? w.w_hr.sym_size(0) : hidden};
  for (const NamedWeight& weight : kWeights)
    if ((w.*weight.tensor).defined())
      check_weight(weight, w.*weight.tensor, sizes, input.scalar_type(), input);
}

void check_weights(Layer& layer) {
  const Direction& first = layer.directions[0];
  for (const Direction& w : layer.directions) {
    check_direction(w, layer.input);
    TORCH_CHECK(w.w_ih.sym_sizes() == first.w_ih.sym_sizes() &&
                    w.w_hh.sym_sizes() == first.w_hh.sym_sizes(),
                "lstm: expected both directions to have weights of the same shapes, got W_ih ",
                first.w_ih.sym_sizes(), " and ", w.w_ih.sym_sizes());
  }
  layer.hidden_size = first.w_ih.sym_size(0) / 4;
  layer.output_size = first.w_hh.sym_size(1);
}

// Packed matrices have no shapes, so the sizes are those of the state.
void check_packed_weights(Layer& layer) {
  check_dims(layer.c_0, "c_0", 3);
  layer.hidden_size = layer.c_0.sym_size(2);
  layer.output_size = layer.h_0.sym_size(2);
  TORCH_CHECK(layer.projects() || layer.output_size == layer.hidden_size,
              "lstm: expected h_0 and c_0 of the same size without W_hr, got ", layer.output_size,
              " and ", layer.hidden_size);
  const auto dtype = state_dtype(layer.input.scalar_type());
  const Extents sizes{4 * layer.hidden_size, layer.input_size, layer.hidden_size,
                      layer.output_size};
  for (const Direction& w : layer.directions)
    for (const NamedWeight& weight : kWeights) {
      const Tensor& tensor = w.*weight.tensor;
      if (!tensor.defined()) continue;
      check_device(tensor, weight.name, layer.input);
      if (!weight.is_matrix()) check_weight(weight, tensor, sizes, dtype, layer.input);
    }
}

bool is_supported(at::ScalarType dtype) {
#define FASTLSTM_IS(T, A, name) || dtype == at::k##name
  return false FASTLSTM_FOR_EACH_DTYPE(FASTLSTM_IS);
#undef FASTLSTM_IS
}

void check_input(const LstmCall& call) {
  const Tensor& input = call.input;
  TORCH_CHECK(is_supported(input.scalar_type()),
              "lstm: expected input of dtype float32, float64, bfloat16 or float16, got ",
              input.scalar_type());
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

// The call but the sizes that follow from its weights.
Layer unpack(const LstmCall& call, bool packed) {
  Layer layer;
  static_cast<CallTensors&>(layer) = call.tensors();
  layer.layout = WeightLayout::of(call.layout);
  TORCH_CHECK(
      layer.layout.format.empty() != packed,
      "lstm: expected layout to be of the words bias, projection, layer_norm, in this order",
      packed ? ", and the format of packed weights" : "", ", got \"", call.layout, "\"");
  layer.directions = layer.layout.directions(call.weights, call.h_0.sym_size(0).expect_int());
  layer.input_size = call.input.sym_size(-1);
  if (layer.packed()) {
    layer.steps = call.batch_sizes->sym_size(0);
    layer.batch = call.h_0.sym_size(1);
    layer.flat_rows = call.input.sym_size(0);
  } else {
    layer.steps = call.input.sym_size(0);
    layer.batch = call.input.sym_size(1);
    layer.flat_rows = layer.steps * layer.batch;
  }
  return layer;
}

void check_options(const Layer& layer) {
  const auto dtype = layer.input.scalar_type();
  if (layer.lengths)
    check_tensor(*layer.lengths, "lengths", {layer.batch}, "(batch)", at::kLong, layer.input);
  if (layer.reset)
    check_tensor(*layer.reset, "reset", {layer.steps, layer.batch}, "(steps, batch)", at::kBool,
                 layer.input);
  if (layer.h_mask) check_h(layer, *layer.h_mask, "h_mask");
  if (layer.zoneout_h)
    check_sequence(layer, *layer.zoneout_h, "zoneout_h", layer.output_size, "output size", true,
                   dtype);
  if (layer.zoneout_c)
    check_sequence(layer, *layer.zoneout_c, "zoneout_c", layer.hidden_size, "hidden_size", true,
                   dtype);
}

void check_batch_sizes(const Layer& layer) {
  const Tensor sizes = layer.batch_sizes->contiguous();
  const int64_t* size = sizes.const_data_ptr<int64_t>();
  int64_t total = 0, last = layer.batch.expect_int();
  for (int64_t t = 0; t < sizes.size(0); total += last, ++t) {
    TORCH_CHECK(size[t] > 0 && size[t] <= last && (t > 0 || size[t] == last),
                "lstm: expected batch_sizes to start with the batch size ", layer.batch,
                " and never to grow or fall below 1, got ", size[t], " at step ", t);
    last = size[t];
  }
  TORCH_CHECK(total == layer.flat_rows,
              "lstm: expected batch_sizes to sum to input.size(0) = ", layer.flat_rows, ", got ",
              total);
}

}  // namespace

WeightLayout WeightLayout::of(c10::string_view words) {
  std::string_view left(words.data(), words.size());
  const auto begins_with = [&left](std::string_view word) {
    if (left.substr(0, left.find(' ')) != word) return false;
    left.remove_prefix(std::min(word.size() + 1, left.size()));
    return true;
  };
  WeightLayout layout;
  layout.bias = begins_with("bias"), layout.projects = begins_with("projection");
  layout.normalizes = begins_with("layer_norm"), layout.format = left;
  return layout;
}

int64_t WeightLayout::each() const {
  return std::count_if(std::begin(kWeights), std::end(kWeights),
                       [this](const NamedWeight& weight) { return this->*weight.is_there; });
}

std::vector<Direction> WeightLayout::directions(at::TensorList weights, int64_t count) const {
  if (static_cast<int64_t>(weights.size()) != count * each()) {
    std::string names;
    for_each_weight_of(
        *this, [&names](const NamedWeight& weight) { names.append(weight.name).append(", "); });
    TORCH_CHECK(false, "lstm: expected weights to hold ", names, "as layout says, for each of ",
                count, " direction(s) (h_0.size(0)), got ", weights.size(), " tensors");
  }
  std::vector<Direction> directions(count);
  const Tensor* next = weights.data();
  for (Direction& direction : directions)
    for (const NamedWeight& weight : kWeights)
      if (this->*weight.is_there) direction.*weight.tensor = *next++;
  return directions;
}

Layer check_layer(const LstmCall& call, bool packed) {
  check_input(call);
  Layer layer = unpack(call, packed);
  packed ? check_packed_weights(layer) : check_weights(layer);
  TORCH_CHECK(layer.steps > 0, "Expected sequence length to be larger than 0 in RNN");
  check_h(layer, layer.h_0, "h_0");
  const auto dtype = layer.input.scalar_type(), of_c = layer.c_0.scalar_type();
  check_c(layer, layer.c_0, "c_0", of_c == state_dtype(dtype) ? of_c : dtype);
  check_options(layer);
  return layer;
}

Saved check_saved(const Layer& layer, const BackwardArguments& a) {
  const auto dtype = layer.input.scalar_type();
  const Tensor& gates = a.gates;
  const bool recompute = gates.dim() == 1 && gates.sym_size(0) == 0;
  TORCH_CHECK(!a.request.per_row || !(recompute || layer.normalizes()),
              "lstm_backward: expected saved gates and no layer normalization with per_row");
  check_sequence(layer, a.output, "the saved output", layer.num_directions() * layer.output_size,
                 "directions * output size", false, dtype);
  check_sequence(layer, a.cells, "the saved cells", layer.hidden_size, "hidden_size", true,
                 state_dtype(dtype));
  if (recompute)
    check_tensor(gates, "the saved gates", {0}, "(0)", dtype, layer.input);
  else
    check_sequence(layer, gates, "the saved gates", 4 * layer.hidden_size, "4 * hidden_size", true,
                   dtype);
  return {a.output, a.cells, recompute ? Tensor() : gates};
}

OutputGrads check_grads(const Layer& layer, const BackwardArguments& a) {
  const auto dtype = layer.input.scalar_type();
  const auto given = [](const OptionalTensor& grad) { return grad.value_or(Tensor()); };
  const OutputGrads grads{given(a.grad_output), given(a.grad_h_n), given(a.grad_c_n),
                          given(a.grad_cells)};
  if (grads.output.defined())
    check_sequence(layer, grads.output, "grad_output", layer.num_directions() * layer.output_size,
                   "directions * output size", false, dtype);
  if (grads.h_n.defined()) check_h(layer, grads.h_n, "grad_h_n");
  if (grads.c_n.defined()) check_c(layer, grads.c_n, "grad_c_n", layer.c_0.scalar_type());
  if (grads.cells.defined())
    check_sequence(layer, grads.cells, "grad_cells", layer.hidden_size, "hidden_size", true,
                   state_dtype(dtype));
  return grads;
}

void check_memory(const Tensor& tensor, const char* name) {
  if (!tensor.defined() || tensor.numel() == 0) return;
  const size_t needed = at::detail::computeStorageNbytes(
      tensor.sizes(), tensor.strides(), tensor.dtype().itemsize(), tensor.storage_offset());
  const auto& storage = tensor.storage();
  TORCH_CHECK(storage.nbytes() >= needed && storage.data(), "lstm: expected ", name, " of shape ",
              tensor.sizes(), " to have ", needed, " bytes of memory, got ",
              storage.data() ? storage.nbytes() : 0);
}

void check_values(const Layer& layer, const Saved& saved, const OutputGrads& grads) {
  for_each_tensor(layer, check_memory);
  for (const Direction& w : layer.directions) for_each_weight(w, check_memory);
  check_memory(saved.output, "the saved output"), check_memory(saved.cells, "the saved cells");
  check_memory(saved.gates, "the saved gates"), check_memory(grads.output, "grad_output");
  check_memory(grads.h_n, "grad_h_n"), check_memory(grads.c_n, "grad_c_n");
  check_memory(grads.cells, "grad_cells");
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
