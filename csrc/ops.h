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

// A call of lstm_backward in which some tensors hold N samples along their first dimension.
struct BackwardCall {
  std::vector<OptionalTensor> tensors;  // in the schema's order, but the weights stand at the end
  std::vector<size_t> batched;          // positions in rising order, at least one
  bool input_needs_grad, state_needs_grad;
  std::string engine;
  bool per_row;
};

// The results in one list, N along the first dimension of each (batching.cpp).
std::vector<Tensor> backward_of_samples(const BackwardCall& call);

}  // namespace fastlstm
