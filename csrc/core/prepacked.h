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

PackedResult lstm_packed_cpu(LstmCall call, const PackedOptions& options);
}  // namespace fastlstm
