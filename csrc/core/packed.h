// Weights that do not change: packed once, in the layer's dtype or in fewer bits, for inference on
// the CPU.
//
// fastlstm::lstm_packed takes them in place of `weights`, for each direction W_ih, W_hh, the bias
// b_ih + b_hh [4H] in the state's dtype, W_hr if there is a projection, and with layer
// normalisation gain_ih, gain_hh, gain_c and bias_c in the state's dtype; every matrix is then
// packed as "W_hr" is. A packed matrix is a tensor without a shape of its own, whose panels this
// processor reads: `layout` names them, so that no other reads it.
#pragma once
#include <string>

#include "core/call.h"

namespace fastlstm {

struct PackedOptions {
  c10::string_view layout;
  bool save_cells;
};

// output, h_n, c_n, cells
using PackedResult = std::tuple<Tensor, Tensor, Tensor, Tensor>;

// What `layout` has to be on this processor.
std::string packed_layout();

// W [rows,K] packed, of float32, float64, bfloat16, or of int8 with the scale [rows] of each row.
// role: "W_ih", "W_hh" or "W_hr".
Tensor pack_weight(const Tensor& weight, const OptionalTensor& scale, const std::string& role);
// What was packed, and the scales.
std::tuple<Tensor, OptionalTensor> unpack_weight(const Tensor& packed, int64_t rows, int64_t K,
                                                 const std::string& role);

// One step of one direction on plain float32 tensors, without the overhead of a call: input
// [B,I], h [B,P] and c [B,H], or the same with a 1 in front. Nothing for other tensors.
struct StepCall {
  const Tensor &input, &h, &c;
  at::TensorList weights;
};
using StepResult = std::optional<std::tuple<Tensor, Tensor>>;
StepResult lstm_packed_step(const StepCall& call);

// The same for a layer with layer normalisation, which check_packed_layer has checked.
struct Layer;
PackedResult packed_layer_norm(const LstmCall& call, const Layer& checked, bool save_cells);

PackedResult lstm_packed_cpu(const LstmCall& call, const PackedOptions& options);
}  // namespace fastlstm
