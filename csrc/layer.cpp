#include "layer.h"

namespace fastlstm {
namespace {

void check_tensor(const Tensor& tensor, const char* name, c10::SymIntArrayRef expected,
                  const char* meaning, const Tensor& input) {
  TORCH_CHECK(tensor.sym_sizes() == expected, "lstm: expected ", name, " of shape ", meaning, " = ",
              expected, ", got ", tensor.sym_sizes());
  TORCH_CHECK(tensor.device() == input.device(), "lstm: expected ", name, " on ", input.device(),
              " like input, got ", tensor.device());
  TORCH_CHECK(tensor.scalar_type() == input.scalar_type(), "lstm: expected ", name, " of dtype ",
              input.scalar_type(), " like input, got ", tensor.scalar_type());
}

std::vector<Direction> check_weights(at::TensorList weights, int64_t num_directions,
                                     const Tensor& input) {
  const auto count = static_cast<int64_t>(weights.size());
  const int64_t each = count / num_directions;
  TORCH_CHECK(
      count == each * num_directions && each >= 2 && each <= 9,
      "lstm: expected weights to hold W_ih, W_hh, then b_ih, b_hh if there are biases, then "
      "W_hr if there is a projection, then gain_ih, gain_hh, gain_c, bias_c if there is layer "
      "normalisation, for each of ",
      num_directions, " direction(s) (h_0.size(0)), got ", count, " tensors");
  const bool norms = each >= 6, projects = each % 2 == 1;
  const int64_t plain = norms ? each - 4 : each;
  const bool bias = plain >= 4;
  std::vector<Direction> directions;
  for (int64_t d = 0; d < num_directions; ++d) {
    const Tensor* w = weights.data() + d * each;
    Direction direction;
    direction.w_ih = w[0], direction.w_hh = w[1];
    for (int64_t k = 0; k < each; ++k) {
      const int64_t dims = k >= plain || (bias && (k == 2 || k == 3)) ? 1 : 2;
      TORCH_CHECK(w[k].dim() == dims, "lstm: expected weights[", d * each + k, "] to have ", dims,
                  " dimension(s), got shape ", w[k].sym_sizes());
    }
    if (bias) direction.b_ih = w[2], direction.b_hh = w[3];
    if (projects) direction.w_hr = w[plain - 1];
    const auto gates = w[0].sym_size(0);
    TORCH_CHECK(gates % 4 == 0, "lstm: expected W_ih of shape (4 * hidden_size, input_size), got ",
                w[0].sym_sizes());
    const auto hidden = gates / 4;
    const auto out = projects ? direction.w_hr.sym_size(0) : hidden;
    check_tensor(w[0], "W_ih", {gates, input.sym_size(-1)}, "(4 * hidden_size, input_size)", input);
    check_tensor(w[1], "W_hh", {gates, out}, "(4 * hidden_size, output size)", input);
    if (bias) {
      check_tensor(w[2], "b_ih", {gates}, "(4 * hidden_size)", input);
      check_tensor(w[3], "b_hh", {gates}, "(4 * hidden_size)", input);
    }
    if (projects)
      check_tensor(direction.w_hr, "W_hr", {out, hidden}, "(proj_size, hidden_size)", input);
    if (norms) {
      direction.gain_ih = w[plain], direction.gain_hh = w[plain + 1];
      direction.gain_c = w[plain + 2], direction.bias_c = w[plain + 3];
      check_tensor(direction.gain_ih, "gain_ih", {gates}, "(4 * hidden_size)", input);
      check_tensor(direction.gain_hh, "gain_hh", {gates}, "(4 * hidden_size)", input);
      check_tensor(direction.gain_c, "gain_c", {hidden}, "(hidden_size)", input);
      check_tensor(direction.bias_c, "bias_c", {hidden}, "(hidden_size)", input);
    }
    TORCH_CHECK(d == 0 || (w[0].sym_sizes() == weights[0].sym_sizes() &&
                           w[1].sym_sizes() == weights[1].sym_sizes()),
                "lstm: expected both directions to have weights of the same shapes, got W_ih ",
                weights[0].sym_sizes(), " and ", w[0].sym_sizes());
    directions.push_back(std::move(direction));
  }
  return directions;
}

}  // namespace

Layer check_layer(const Tensor& input, const Tensor& h_0, const Tensor& c_0, at::TensorList weights,
                  const OptionalTensor& batch_sizes, const OptionalTensor& lengths,
                  const OptionalTensor& reset, const OptionalTensor& h_mask,
                  const OptionalTensor& zoneout_h, const OptionalTensor& zoneout_c) {
  const auto dtype = input.scalar_type();
  TORCH_CHECK(
      dtype == at::kFloat || dtype == at::kDouble || dtype == at::kBFloat16 || dtype == at::kHalf,
      "lstm: expected input of dtype float32, float64, bfloat16 or float16, got ", dtype);
  const bool packed = batch_sizes.has_value();
  TORCH_CHECK(input.dim() == (packed ? 2 : 3), "lstm: expected input of shape ",
              packed ? "(packed rows, input_size), since batch_sizes is given"
                     : "(steps, batch, input_size)",
              ", got ", input.sym_sizes());
  TORCH_CHECK(h_0.dim() == 3 && (h_0.sym_size(0) == 1 || h_0.sym_size(0) == 2),
              "lstm: expected h_0 of shape (1 or 2 directions, batch, output size), got ",
              h_0.sym_sizes());

  Layer layer;
  layer.directions = check_weights(weights, h_0.sym_size(0).expect_int(), input);
  layer.input = input, layer.h_0 = h_0, layer.c_0 = c_0;
  layer.batch_sizes = batch_sizes, layer.lengths = lengths, layer.reset = reset;
  layer.h_mask = h_mask, layer.zoneout_h = zoneout_h, layer.zoneout_c = zoneout_c;
  layer.input_size = input.sym_size(-1);
  layer.hidden_size = layer.directions[0].w_ih.sym_size(0) / 4;
  layer.output_size = layer.directions[0].w_hh.sym_size(1);
  if (packed) {
    TORCH_CHECK(batch_sizes->dim() == 1 && batch_sizes->scalar_type() == at::kLong &&
                    (batch_sizes->device().is_cpu() || input.is_meta()),
                "lstm: expected batch_sizes of shape (steps), dtype int64, on the CPU, as in a "
                "PackedSequence, got ",
                batch_sizes->sym_sizes(), " ", batch_sizes->scalar_type(), " on ",
                batch_sizes->device());
    TORCH_CHECK(!lengths && !reset, "lstm: ", lengths ? "lengths" : "reset",
                " cannot be combined with batch_sizes (packed input)");
    layer.steps = batch_sizes->sym_size(0);
    layer.batch = h_0.sym_size(1);
    layer.flat_rows = input.sym_size(0);
  } else {
    layer.steps = input.sym_size(0);
    layer.batch = input.sym_size(1);
    layer.flat_rows = layer.steps * layer.batch;
  }
  TORCH_CHECK(layer.steps > 0, "Expected sequence length to be larger than 0 in RNN");
  check_tensor(h_0, "h_0", {layer.num_directions(), layer.batch, layer.output_size},
               "(directions, batch, output size)", input);
  check_tensor(c_0, "c_0", {layer.num_directions(), layer.batch, layer.hidden_size},
               "(directions, batch, hidden_size)", input);
  if (lengths)
    TORCH_CHECK(lengths->dim() == 1 && lengths->sym_size(0) == layer.batch &&
                    lengths->scalar_type() == at::kLong && lengths->device() == input.device(),
                "lstm: expected lengths of shape (batch) = (", layer.batch, "), dtype int64, on ",
                input.device(), ", got ", lengths->sym_sizes(), " ", lengths->scalar_type(), " on ",
                lengths->device());
  if (reset)
    TORCH_CHECK(reset->dim() == 2 && reset->sym_size(0) == layer.steps &&
                    reset->sym_size(1) == layer.batch && reset->scalar_type() == at::kBool &&
                    reset->device() == input.device(),
                "lstm: expected reset of shape (steps, batch) = (", layer.steps, ", ", layer.batch,
                "), dtype bool, on ", input.device(), ", got ", reset->sym_sizes(), " ",
                reset->scalar_type(), " on ", reset->device());
  if (h_mask)
    check_tensor(*h_mask, "h_mask", {layer.num_directions(), layer.batch, layer.output_size},
                 "(directions, batch, output size)", input);
  const auto check_zoneout = [&](const OptionalTensor& zoneout, const char* name,
                                 const c10::SymInt& size) {
    if (!zoneout) return;
    if (packed)
      check_tensor(*zoneout, name, {layer.num_directions(), layer.flat_rows, size},
                   "(directions, packed rows, size of the state)", input);
    else
      check_tensor(*zoneout, name, {layer.num_directions(), layer.steps, layer.batch, size},
                   "(directions, steps, batch, size of the state)", input);
  };
  check_zoneout(zoneout_h, "zoneout_h", layer.output_size);
  check_zoneout(zoneout_c, "zoneout_c", layer.hidden_size);
  return layer;
}

std::string Layer::options() const {
  std::string names;
  const auto add = [&](bool is_there, const char* name) {
    if (is_there) names += names.empty() ? name : std::string(", ") + name;
  };
  add(projects(), "proj_size");
  add(h_mask.has_value(), "recurrent dropout");
  add(zones_out(), "zoneout");
  add(normalizes(), "layer normalisation");
  return names;
}

void check_values(const Layer& layer) {
  if (layer.packed()) {
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
  if (layer.lengths && layer.lengths->device().is_cpu()) {
    const Tensor lengths = layer.lengths->contiguous();
    const int64_t* length = lengths.const_data_ptr<int64_t>();
    for (int64_t b = 0; b < lengths.size(0); ++b)
      TORCH_CHECK(length[b] >= 0 && length[b] <= layer.steps,
                  "lstm: expected lengths between 0 and the number of steps ", layer.steps,
                  ", got ", length[b], " for batch row ", b);
  }
}

namespace {

void check_saved_tensor(const char* name, const Tensor& tensor, int64_t count, at::ScalarType dtype,
                        const Layer& layer) {
  TORCH_CHECK(tensor.numel() == count && tensor.scalar_type() == dtype &&
                  tensor.device() == layer.input.device(),
              "lstm_backward: expected ", name, " with ", count, " elements of dtype ", dtype,
              " on ", layer.input.device(), ", as the forward op returns it, got ", tensor.sizes(),
              " ", tensor.scalar_type(), " on ", tensor.device());
}

}  // namespace

Saved check_saved(const Layer& layer, const Tensor& output, const Tensor& cells,
                  const Tensor& gates, bool per_row) {
  const int64_t rows = layer.flat_rows.expect_int() * layer.num_directions();
  const int64_t hidden = layer.hidden_size.expect_int();
  const auto dtype = layer.input.scalar_type();
  check_saved_tensor("output", output, rows * layer.output_size.expect_int(), dtype, layer);
  check_saved_tensor("cells", cells, rows * hidden, state_dtype(dtype), layer);
  const bool remade = gates.numel() == 0 && rows > 0;
  TORCH_CHECK(!per_row || !(remade || layer.normalizes()),
              "lstm_backward: expected saved gates and no layer normalisation with per_row");
  if (remade) return {output, cells, {}};
  check_saved_tensor("gates", gates, rows * 4 * hidden, dtype, layer);
  return {output, cells, gates};
}

OutputGrads check_grads(const Layer& layer, const OptionalTensor& output, const OptionalTensor& h_n,
                        const OptionalTensor& c_n, const OptionalTensor& cells) {
  const int64_t rows = layer.flat_rows.expect_int() * layer.num_directions();
  const int64_t batch = layer.batch.expect_int() * layer.num_directions();
  const int64_t hidden = layer.hidden_size.expect_int(), out = layer.output_size.expect_int();
  const auto dtype = layer.input.scalar_type();
  const auto checked = [&](const char* name, const OptionalTensor& grad, int64_t count,
                           at::ScalarType expected) {
    if (!grad || !grad->defined()) return Tensor();
    check_saved_tensor(name, *grad, count, expected, layer);
    return *grad;
  };
  return {checked("grad_output", output, rows * out, dtype),
          checked("grad_h_n", h_n, batch * out, dtype),
          checked("grad_c_n", c_n, batch * hidden, dtype),
          checked("grad_cells", cells, rows * hidden, state_dtype(dtype))};
}

std::vector<WalkStep> walk(const Layer& layer, bool reverse) {
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

at::ScalarType state_dtype(at::ScalarType dtype) {
  return dtype == at::kDouble ? at::kDouble : at::kFloat;
}

}  // namespace fastlstm
