// One call of the op, checked and unpacked: what every engine works on.
//
// Sizes: T steps, B batch rows, I input_size, H hidden_size, P output size (proj_size or H),
// D directions (direction 1 walks in reverse). A padded [T,B] batch and packed data are both seen
// as R flat rows in time order (R = T * B, or the length of the packed data).
#pragma once
#include <ATen/ATen.h>

#include <optional>
#include <string>
#include <tuple>
#include <vector>

namespace fastlstm {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

struct Direction {
  Tensor w_ih;        // [4H,I]
  Tensor w_hh;        // [4H,P]
  Tensor b_ih, b_hh;  // [4H], or undefined
  Tensor w_hr;        // [P,H], or undefined without projection
  // Layer normalisation (layer_norm_step.h), or undefined; the biases are those of the norms too.
  Tensor gain_ih, gain_hh;  // [4H]
  Tensor gain_c, bias_c;    // [H]
};

struct Layer {
  Tensor input, h_0, c_0;  // [T,B,I] or [R,I]; [D,B,P]; [D,B,H]
  std::vector<Direction> directions;
  OptionalTensor batch_sizes, lengths, reset;
  OptionalTensor h_mask;     // [D,B,P] what h_{t-1} is multiplied with on its way into W_hh
  OptionalTensor zoneout_h;  // [D,T,B,P] or [D,R,P] the share of h_{t-1} that stays
  OptionalTensor zoneout_c;  // [D,T,B,H] or [D,R,H] the share of c_{t-1} that stays
  c10::SymInt steps, batch, flat_rows, input_size, hidden_size, output_size;

  bool packed() const { return batch_sizes.has_value(); }
  bool projects() const { return directions[0].w_hr.defined(); }
  bool normalizes() const { return directions[0].gain_ih.defined(); }
  bool zones_out() const { return zoneout_h || zoneout_c; }
  std::string options() const;  // the names of what the call has beyond a plain LSTM, for messages
  bool has_bias() const { return directions[0].b_ih.defined(); }
  int64_t num_directions() const { return static_cast<int64_t>(directions.size()); }
};

// Shapes, dtypes and devices agree, or the error names the argument, what was expected and what
// came. Serves CPU, CUDA and Meta alike, so it asks for symbolic sizes only.
Layer check_layer(const Tensor& input, const Tensor& h_0, const Tensor& c_0, at::TensorList weights,
                  const OptionalTensor& batch_sizes, const OptionalTensor& lengths,
                  const OptionalTensor& reset, const OptionalTensor& h_mask,
                  const OptionalTensor& zoneout_h, const OptionalTensor& zoneout_c);

// The values inside batch_sizes, and of lengths where reading them needs no device
// synchronisation.
void check_values(const Layer& layer);

// Where one step of a walk finds its rows among the flat rows.
struct WalkStep {
  int64_t t;            // position in time
  int64_t offset;       // first flat row
  int64_t rows;         // rows alive (all B of them where lengths decides on the device)
  int64_t prev_offset;  // the same of the step before, in walking order
  int64_t prev_rows;    // 0 at the first step
};
std::vector<WalkStep> walk(const Layer& layer, bool reverse);

// float for the 16-bit types, else the dtype itself: the cell state and all arithmetic.
at::ScalarType state_dtype(at::ScalarType dtype);

// output, h_n, c_n, cells, gates
using ForwardResult = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;
// grad_input, grad_h_0, grad_c_0, grad_weights: per direction W_ih, W_hh, bias?, W_hr?, and four of
// the norms?; b_ih and b_hh share one gradient. Without state_needs_grad the second and third hold
// nothing of use. With per_row, grad_weights are what those
// are products of: per direction d_gates, shaped as gates.
using BackwardResult = std::tuple<Tensor, Tensor, Tensor, std::vector<Tensor>>;

// What backward needs besides the layer. Without gates (undefined) it makes them again.
struct Saved {
  Tensor output, cells, gates;
};
struct OutputGrads {  // undefined: zero
  Tensor output, h_n, c_n, cells;
};
Saved check_saved(const Layer& layer, const Tensor& output, const Tensor& cells,
                  const Tensor& gates, bool per_row);
OutputGrads check_grads(const Layer& layer, const OptionalTensor& output, const OptionalTensor& h_n,
                        const OptionalTensor& c_n, const OptionalTensor& cells);

}  // namespace fastlstm
