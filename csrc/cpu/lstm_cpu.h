// The kernel of the CPU key.
#pragma once
#include "core/call.h"

namespace fastlstm {

// Computes lstm, or lstm_prepacked if the weights are prepacked.
ForwardResult lstm_cpu(LstmCall call, const ForwardOptions& options);

}  // namespace fastlstm
