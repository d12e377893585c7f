// The kernel of the forward ops for the dispatch key CPU.
#pragma once
#include "core/call.h"

namespace fastlstm {

// Runs the op lstm, or lstm_prepacked if the weights are prepacked.
ForwardResult lstm_cpu(LstmCall call, const ForwardOptions& options);

}  // namespace fastlstm
