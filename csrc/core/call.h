// A call of an op as one value. The dispatcher takes every argument by itself, in the order of the
// schema. Only this file and autograd's own function list the arguments like that.
#pragma once
#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>
#include <vector>

namespace fastlstm {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

// References that are valid as long as the call. Shapes: layer.h.
struct LstmCall {
  const Tensor &input, &h_0, &c_0;
  at::TensorList weights;  // weights.h
  const OptionalTensor &batch_sizes, &lengths, &reset, &h_mask, &zoneout_h, &zoneout_c;
};

struct ForwardOptions {
  bool save_cells, save_gates, recompute;
  c10::string_view engine;
};

// Which gradients are requested besides those of the weights; per_row: what BackwardResult says.
struct GradientRequest {
  bool input, state, per_row;
};

struct BackwardArguments {
  const OptionalTensor &grad_output, &grad_h_n, &grad_c_n, &grad_cells;
  const Tensor &output, &cells, &gates;  // saved
  GradientRequest request;
  c10::string_view engine;
};

// output, h_n, c_n, cells, gates
using ForwardResult = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;
// grad_input, grad_h_0, grad_c_0, grad_weights: per direction those of the list of weights, but one
// for b_ih and b_hh. Without request.state the second and third hold nothing of use. With
// request.per_row, grad_weights holds instead what those are products of: d_gates for each
// direction, shaped as gates.
using BackwardResult = std::tuple<Tensor, Tensor, Tensor, std::vector<Tensor>>;

// What the gradients of the weights at a step are products of: [1,B,I], [1,B,H] and [1,B,4H].
struct StepFactors {
  Tensor input, h_0, d_gates;
};
// W_ih's, W_hh's and the biases' of many such steps, in the dtype of the state; on the CPU.
std::vector<Tensor> step_gradients_cpu(const std::vector<StepFactors>& steps);

// Whether a tensor stands for another, or for values that it does not hold: only the dispatcher may
// look at its memory.
bool is_wrapper(const Tensor& tensor);

// The same values in memory of its own, if the dispatcher is not there to find them.
inline Tensor in_memory(const Tensor& tensor) {
  return is_wrapper(tensor) ? tensor.clone() : tensor;
}

// Through the dispatcher.
ForwardResult call_lstm(const LstmCall& call, const ForwardOptions& options);
BackwardResult call_lstm_backward(const LstmCall& call, const BackwardArguments& arguments);

// A function of a call as the dispatcher calls it.
template <ForwardResult (*function)(const LstmCall&, const ForwardOptions&)>
ForwardResult forward_op(const Tensor& input, const Tensor& h_0, const Tensor& c_0,
                         at::TensorList weights, const OptionalTensor& batch_sizes,
                         const OptionalTensor& lengths, const OptionalTensor& reset,
                         const OptionalTensor& h_mask, const OptionalTensor& zoneout_h,
                         const OptionalTensor& zoneout_c, bool save_cells, bool save_gates,
                         bool recompute, c10::string_view engine) {
  return function(
      {input, h_0, c_0, weights, batch_sizes, lengths, reset, h_mask, zoneout_h, zoneout_c},
      {save_cells, save_gates, recompute, engine});
}

template <BackwardResult (*function)(const LstmCall&, const BackwardArguments&)>
BackwardResult backward_op(const OptionalTensor& grad_output, const OptionalTensor& grad_h_n,
                           const OptionalTensor& grad_c_n, const OptionalTensor& grad_cells,
                           const Tensor& input, const Tensor& h_0, const Tensor& c_0,
                           at::TensorList weights, const OptionalTensor& batch_sizes,
                           const OptionalTensor& lengths, const OptionalTensor& reset,
                           const OptionalTensor& h_mask, const OptionalTensor& zoneout_h,
                           const OptionalTensor& zoneout_c, const Tensor& output,
                           const Tensor& cells, const Tensor& gates, bool input_needs_grad,
                           bool state_needs_grad, c10::string_view engine, bool per_row) {
  return function(
      {input, h_0, c_0, weights, batch_sizes, lengths, reset, h_mask, zoneout_h, zoneout_c},
      {grad_output, grad_h_n, grad_c_n, grad_cells, output, cells, gates,
       GradientRequest{input_needs_grad, state_needs_grad, per_row}, engine});
}

}  // namespace fastlstm
