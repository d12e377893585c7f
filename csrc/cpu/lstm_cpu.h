// The kernel of the ops lstm and lstm_prepacked for the dispatch key CPU.
#pragma once
#include "core/call.h"

namespace fastlstm {

ForwardResult lstm_cpu(LstmCall call, const ForwardOptions& options);

}  // namespace fastlstm
