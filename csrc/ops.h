// Calls of the two ops through the dispatcher, for the C++ code that stands above them.
#pragma once
#include "layer.h"

namespace fastlstm {

ForwardResult call_lstm(const Tensor& input, const Tensor& h_0, const Tensor& c_0,
                        at::TensorList weights, const OptionalTensor& batch_sizes,
                        const OptionalTensor& lengths, const OptionalTensor& reset,
                        const OptionalTensor& h_mask, const OptionalTensor& zoneout_h,
                        const OptionalTensor& zoneout_c, bool save_cells, bool save_gates,
                        bool recompute, c10::string_view engine);

BackwardResult call_lstm_backward(const OptionalTensor& grad_output, const OptionalTensor& grad_h_n,
                                  const OptionalTensor& grad_c_n, const OptionalTensor& grad_cells,
                                  const Tensor& input, const Tensor& h_0, const Tensor& c_0,
                                  at::TensorList weights, const OptionalTensor& batch_sizes,
                                  const OptionalTensor& lengths, const OptionalTensor& reset,
                                  const OptionalTensor& h_mask, const OptionalTensor& zoneout_h,
                                  const OptionalTensor& zoneout_c, const Tensor& output,
                                  const Tensor& cells, const Tensor& gates, bool input_needs_grad,
                                  bool state_needs_grad, c10::string_view engine, bool per_row);

}  // namespace fastlstm
