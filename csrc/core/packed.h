// Weights that do not change: packed once, in the layer's dtype or in fewer bits, for inference on
// the CPU. fastlstm::lstm_packed takes a call whose layout ends in their format: its matrices are
// what pack_weight returns, bytes behind a header that says how to read them, and the others are in
// the dtype of the state.
#pragma once
#include <string>

#include "core/call.h"

namespace fastlstm {

// W [rows,K], of int8 with the scale [rows] of each row. by_gates: of W_ih and W_hh, whose
// panels hold the gates of a unit together.
Tensor pack_weight(const Tensor& weight, const OptionalTensor& scale, const std::string& format,
                   bool by_gates);
// What was packed, and the scales.
std::tuple<Tensor, OptionalTensor> unpack_weight(const Tensor& packed);

// One step of one direction on plain float32 tensors, without the overhead of a call: input
// [B,I], h_0 [B,P] and c_0 [B,H], or the same with a 1 in front. Nothing for other tensors.
using OneStepResult = std::optional<std::tuple<Tensor, Tensor>>;
OneStepResult lstm_packed_one_step(const LstmCall& call);

PackedResult lstm_packed_cpu(LstmCall call, const PackedOptions& options);
}  // namespace fastlstm
