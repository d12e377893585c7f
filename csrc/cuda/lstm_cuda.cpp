// CUDA key: checks the call, asks the planner for an engine, runs it. The only file that knows both
// ATen and CUDA; of CUDA's libraries it needs the runtime alone.
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <cstdio>
#include <mutex>
#include <optional>
#include <string>

#include "../stepwise.h"
#include "launch.h"
#include "persistent.h"

namespace fastlstm {
namespace {

void check_cuda(cudaError_t error, const char* call) {
  TORCH_CHECK(error == cudaSuccess, "lstm: ", call, " failed: ", cudaGetErrorString(error));
}

// The sequence as the kernels see it, and the tensors that it points into.
struct DeviceSequence {
  Tensor table, lengths, order, reset;
  Sequence sequence;

  // sorted: whether padded rows of similar length should share a tile.
  DeviceSequence(const Layer& layer, bool sorted) {
    const int64_t steps = layer.steps.expect_int(), batch = layer.batch.expect_int();
    sequence = {static_cast<int>(steps),
                static_cast<int>(batch),
                static_cast<int>(layer.output_size.expect_int()),
                nullptr,
                nullptr,
                nullptr,
                nullptr};
    if (layer.packed()) {
      const Tensor sizes = layer.batch_sizes->contiguous();
      const int64_t* size = sizes.const_data_ptr<int64_t>();
      std::vector<int64_t> host(steps + batch);  // offsets, then lengths
      for (int64_t t = 0, offset = 0; t < steps; offset += size[t], ++t) {
        host[t] = offset;
        const int64_t going_on = t + 1 < steps ? size[t + 1] : 0;
        std::fill(&host[steps] + going_on, &host[steps] + size[t], t + 1);
      }
      table = at::empty({steps + batch}, layer.input.options().dtype(at::kLong));
      int64_t* const data = table.mutable_data_ptr<int64_t>();
      check_cuda(launch_upload(host.data(), steps + batch, data, c10::cuda::getCurrentCUDAStream()),
                 "launch_upload");
      sequence.offsets = data;
      sequence.lengths = data + steps;
    } else if (layer.lengths) {
      lengths = layer.lengths->contiguous();
      sequence.lengths = lengths.const_data_ptr<int64_t>();
      if (sorted) {
        order = at::argsort(lengths, /*dim=*/0, /*descending=*/true);
        sequence.order = order.const_data_ptr<int64_t>();
      }
    }
    if (layer.reset) {
      reset = layer.reset->contiguous();
      sequence.reset = reset.const_data_ptr<bool>();
    }
  }
};

template <typename T>
T* data(const Tensor& tensor) {
  return static_cast<T*>(tensor.data_ptr());
}

// stepwise::previous_hidden in one launch.
template <typename T>
Tensor previous_hidden(const Layer& layer, const Sequence& sequence, int64_t d,
                       const Tensor& output) {
  const Tensor h_0 = layer.h_0[d].contiguous();
  const Tensor h_mask = layer.h_mask ? layer.h_mask->select(0, d).contiguous() : Tensor();
  const Tensor h_prev = at::empty(output.sizes(), output.options());
  check_cuda(launch_previous_hidden(sequence, d == 1, data<T>(output), output.stride(0),
                                    data<T>(h_0), h_mask.defined() ? data<T>(h_mask) : nullptr,
                                    data<T>(h_prev), c10::cuda::getCurrentCUDAStream()),
             "launch_previous_hidden");
  return h_prev;
}

struct CudaKernels {
  template <typename T, typename A>
  static void forward(const StepForward<T, A>& step) {
    check_cuda(launch_step_forward(step, c10::cuda::getCurrentCUDAStream()), "launch_step_forward");
  }
  template <typename T, typename A>
  static void backward(const StepBackward<T, A>& step) {
    check_cuda(launch_step_backward(step, c10::cuda::getCurrentCUDAStream()),
               "launch_step_backward");
  }
  template <typename T>
  static Tensor previous_hidden(const Layer& layer, int64_t d, const Tensor& output,
                                const std::vector<WalkStep>&) {
    const DeviceSequence tables(layer, /*sorted=*/false);
    return fastlstm::previous_hidden<T>(layer, tables.sequence, d, output);
  }
  template <typename T, typename A>
  static void forward_normed(const NormForward<T, A>& step) {
    check_cuda(launch_step_forward_normed(step, c10::cuda::getCurrentCUDAStream()),
               "launch_step_forward_normed");
  }
  template <typename T, typename A>
  static void backward_normed(const NormBackward<T, A>& step) {
    check_cuda(launch_step_backward_normed(step, c10::cuda::getCurrentCUDAStream()),
               "launch_step_backward_normed");
  }
};

// While it lives, float32 GEMMs use TF32 exactly if torch.backends.cudnn.allow_tf32 says so, as
// those of nn.LSTM do. ATen has this switch for the whole process only, so overlapping calls share
// one change of it: the first makes it, the last takes it back. (The older allowTF32CuBLAS refuses
// to answer where the user speaks to torch.backends.cuda.matmul.fp32_precision.)
class GemmPrecision {
  using Precision = at::Float32Precision;

 public:
  explicit GemmPrecision(at::ScalarType dtype) : active_(dtype == at::kFloat) {
    if (!active_) return;
    const std::lock_guard<std::mutex> lock(mutex_);
    if (users_++ > 0) return;
    auto& context = at::globalContext();
    before_ = context.float32Precision(at::Float32Backend::CUDA, at::Float32Op::MATMUL);
    const bool wanted = context.allowTF32CuDNN(at::Float32Op::RNN);
    changed_ = wanted != (before_ == Precision::TF32);
    if (changed_) set(wanted ? Precision::TF32 : Precision::IEEE);
  }
  ~GemmPrecision() {
    if (!active_) return;
    const std::lock_guard<std::mutex> lock(mutex_);
    if (--users_ == 0 && changed_) set(before_);
  }
  GemmPrecision(const GemmPrecision&) = delete;
  GemmPrecision& operator=(const GemmPrecision&) = delete;

 private:
  static void set(Precision precision) {
    at::globalContext().setFloat32Precision(at::Float32Backend::CUDA, at::Float32Op::MATMUL,
                                            precision);
  }

  static inline std::mutex mutex_;
  static inline int users_ = 0;
  static inline Precision before_ = Precision::NONE;
  static inline bool changed_ = false;
  const bool active_;
};

// --- the persistent engine ---

CudaDevice cuda_device(const Tensor& tensor) {
  const int index = tensor.get_device();
  const auto attribute = [&](cudaDeviceAttr name) {
    int value = 0;
    check_cuda(cudaDeviceGetAttribute(&value, name, index), "cudaDeviceGetAttribute");
    return value;
  };
  const int capability = 10 * attribute(cudaDevAttrComputeCapabilityMajor) +
                         attribute(cudaDevAttrComputeCapabilityMinor);
  CudaDevice device = CudaDevice::of(attribute(cudaDevAttrMultiProcessorCount), capability);
  device.shared_bytes = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  if (!attribute(cudaDevAttrCooperativeLaunch)) device.sm_count = 0;  // nothing persistent fits
  return device;
}

Dtype dtype_of(at::ScalarType dtype) {
  return dtype == at::kDouble     ? Dtype::kFloat64
         : dtype == at::kBFloat16 ? Dtype::kBFloat16
         : dtype == at::kHalf     ? Dtype::kFloat16
                                  : Dtype::kFloat32;
}

struct Choice {
  Task task;
  Plan plan;
  bool forced;  // the persistent engine was asked for by name
};

// engine: "auto", "stepwise", "persistent", or "persistent:UNITSxROW_TILExROW_GROUPS" for a
// division of the work other than the planner's (plan.h).
Choice choose(c10::string_view engine, const Layer& layer, bool backward) {
  const std::string name(engine.data(), engine.size());
  Wanted wanted;
  int parsed = 0;
  const bool divided = std::sscanf(name.c_str(), "persistent:%dx%dx%d%n", &wanted.units,
                                   &wanted.row_tile, &wanted.row_groups, &parsed) == 3 &&
                       parsed == static_cast<int>(name.size());
  TORCH_CHECK(name == "auto" || name == "stepwise" || name == "persistent" || divided,
              "lstm: expected engine to be \"auto\", \"stepwise\", \"persistent\" or "
              "\"persistent:UNITSxROW_TILExROW_GROUPS\" on CUDA, got \"",
              name, "\"");

  const Task task{layer.hidden_size.expect_int(),
                  layer.batch.expect_int(),
                  layer.steps.expect_int(),
                  static_cast<int>(layer.num_directions()),
                  dtype_of(layer.input.scalar_type()),
                  at::globalContext().allowTF32CuDNN(at::Float32Op::RNN),
                  layer.projects() || layer.normalizes(),
                  backward};
  if (name == "stepwise") return {task, {}, false};
  const CudaDevice device = cuda_device(layer.input);
  if (name == "auto") return {task, plan(task, device), false};
  const Plan forced = plan_persistent(task, device, wanted);
  TORCH_CHECK(
      forced.persistent, "lstm: the engine \"", name,
      "\" takes float32, bfloat16 and float16 without proj_size and layer normalisation, a batch "
      "that is not empty, and a W_hh that fits into the shared memory of the GPU (sm_80 or newer), "
      "got ",
      layer.input.scalar_type(), layer.options().empty() ? "" : " with ", layer.options(),
      ", batch ", task.batch, ", hidden_size ", task.hidden_size, " on sm_", device.capability,
      " with ", device.sm_count, " SMs");
  return {task, forced, true};
}

// Memory through which blocks exchange values: all bits set, which means that there are none yet.
Tensor unwritten(at::IntArrayRef shape, const at::TensorOptions& options) {
  const Tensor tensor = at::empty(shape, options);
  check_cuda(
      cudaMemsetAsync(tensor.data_ptr(), 0xff, tensor.nbytes(), c10::cuda::getCurrentCUDAStream()),
      "cudaMemsetAsync");
  return tensor;
}

// Runs launch(first direction) for as many directions at a time as the plan says. False where the
// device refuses the first launch because not all blocks can run at once.
template <typename Launch>
bool launch_directions(const Layer& layer, const Choice& choice, const char* name, Launch launch) {
  for (int64_t d = 0; d < layer.num_directions(); d += choice.plan.tiling.directions) {
    const cudaError_t error = launch(d);
    if (d == 0 && !choice.forced &&
        (error == cudaErrorCooperativeLaunchTooLarge || error == cudaErrorNotSupported))
      return false;
    check_cuda(error, name);
  }
  return true;
}

Tensor as_sequence(const Tensor& flat, const Layer& layer, bool per_direction) {
  std::vector<int64_t> shape;
  if (per_direction) shape.push_back(layer.num_directions());
  if (layer.packed())
    shape.push_back(layer.flat_rows.expect_int());
  else
    shape.insert(shape.end(), {layer.steps.expect_int(), layer.batch.expect_int()});
  shape.push_back(flat.size(-1));
  return flat.view(shape);
}

// Empty where the device refuses the launch: then `gates` [D,R,4H] holds the input's part of the
// first tiling.directions directions.
template <typename T>
std::optional<ForwardResult> persistent_forward(const Layer& layer, const Choice& choice,
                                                bool save_cells, bool save_gates, Tensor& gates) {
  const int64_t directions = layer.num_directions(), rows = layer.flat_rows.expect_int();
  const int64_t hidden = layer.hidden_size.expect_int();
  const auto options = layer.input.options(), state_options = options.dtype(at::kFloat);
  const Tensor input = stepwise::flat(layer.input, rows);
  const Tensor c_0 = layer.c_0.to(state_options).contiguous();
  const Tensor h_n = layer.h_0.clone(at::MemoryFormat::Contiguous), c_n = c_0.clone();
  const Tensor h_mask = stepwise::contiguous_or_undefined(layer.h_mask);
  const Tensor h_0 = h_mask.defined() ? h_n * h_mask : layer.h_0.contiguous();
  const Tensor exchange = unwritten({rows, directions * hidden}, options);
  const Tensor output = h_mask.defined() ? at::empty_like(exchange) : exchange;
  const stepwise::Zones<T> zones(layer);
  const Tensor cells = at::empty({save_cells ? directions : 0, rows, hidden}, state_options);
  gates = at::empty({directions, rows, 4 * hidden}, options);
  const DeviceSequence tables(layer, choice.plan.tiling.group_rows > choice.plan.tiling.row_tile);

  PersistentForward<T> call{};
  call.sequence = tables.sequence;
  call.save_gates = save_gates;
  call.output_stride = directions * hidden;
  std::vector<Tensor> w_hh;
  const auto launch = [&](int64_t first) {
    call.first_reverse = first == 1;
    for (int64_t d = first; d < first + choice.plan.tiling.directions; ++d) {
      const Direction& w = layer.directions[d];
      Tensor x_gates = gates[d];
      stepwise::multiply_input(layer, w, input, x_gates);
      w_hh.push_back(w.w_hh.contiguous());
      call.direction[d - first] = {data<T>(w_hh.back()),
                                   data<T>(h_0[d]),
                                   data<float>(c_0[d]),
                                   data<T>(x_gates),
                                   data<T>(output) + d * hidden,
                                   data<T>(exchange) + d * hidden,
                                   save_cells ? data<float>(cells[d]) : nullptr,
                                   data<T>(h_n[d]),
                                   data<float>(c_n[d]),
                                   h_mask.defined() ? data<T>(h_mask[d]) : nullptr,
                                   zones.all(d)};
    }
    return launch_persistent_forward(call, choice.task, choice.plan.tiling,
                                     c10::cuda::getCurrentCUDAStream());
  };
  if (!launch_directions(layer, choice, "launch_persistent_forward", launch)) return std::nullopt;
  return ForwardResult{as_sequence(output, layer, false), h_n, c_n.to(options.dtype()),
                       save_cells ? as_sequence(cells, layer, true) : at::empty({0}, state_options),
                       save_gates ? as_sequence(gates, layer, true) : at::empty({0}, options)};
}

template <typename T>
std::optional<BackwardResult> persistent_backward(const Layer& layer, const Choice& choice,
                                                  Saved& saved, const OutputGrads& grads,
                                                  bool input_needs_grad, bool state_needs_grad,
                                                  bool per_row) {
  const int64_t directions = layer.num_directions(), rows = layer.flat_rows.expect_int();
  const int64_t hidden = layer.hidden_size.expect_int();
  const auto options = layer.input.options(), state_options = options.dtype(at::kFloat);
  const Tensor c_0 = layer.c_0.to(state_options).contiguous();
  const Tensor output = stepwise::flat(saved.output, rows);
  const Tensor cells = saved.cells.contiguous().view({directions, rows, hidden});
  const Tensor d_output = grads.output.defined() ? stepwise::flat(grads.output, rows) : Tensor();
  const Tensor d_cells = grads.cells.defined() ? grads.cells.contiguous().view_as(cells) : Tensor();
  const Tensor d_h = grads.h_n.defined()
                         ? grads.h_n.clone(at::MemoryFormat::Contiguous)
                         : at::zeros({directions, layer.batch.expect_int(), hidden}, options);
  const Tensor d_c = grads.c_n.defined()
                         ? grads.c_n.to(state_options, false, /*copy=*/true).contiguous()
                         : at::zeros_like(c_0);
  std::vector<Tensor> d_gates;
  for (int64_t d = 0; d < directions; ++d)
    d_gates.push_back(unwritten({rows, 4 * hidden}, options));
  const DeviceSequence tables(layer, choice.plan.tiling.group_rows > choice.plan.tiling.row_tile);
  const Tensor input = stepwise::flat(stepwise::without_padding(layer), rows);
  const auto h_prev_of = [&](int64_t d) {
    return previous_hidden<T>(layer, tables.sequence, d, output.narrow(1, d * hidden, hidden));
  };
  if (!saved.gates.defined()) {  // not made where their gradient will lie: that must be unwritten
    saved.gates = at::empty({directions, rows, 4 * hidden}, options);
    for (int64_t d = 0; d < directions; ++d)
      stepwise::make_gates<T, float, CudaKernels>(layer, d, input, h_prev_of(d), saved.gates[d]);
  }
  const Tensor gates = saved.gates.contiguous().view({directions, rows, 4 * hidden});
  const Tensor h_mask = stepwise::contiguous_or_undefined(layer.h_mask);
  const stepwise::Zones<T> zones(layer);

  PersistentBackward<T> call{};
  call.sequence = tables.sequence;
  call.d_output_stride = directions * hidden;
  call.state_needs_grad = state_needs_grad;
  std::vector<Tensor> w_hh;
  const auto launch = [&](int64_t first) {
    call.first_reverse = first == 1;
    for (int64_t d = first; d < first + choice.plan.tiling.directions; ++d) {
      w_hh.push_back(layer.directions[d].w_hh.contiguous());
      call.direction[d - first] = {data<T>(w_hh.back()),
                                   data<float>(c_0[d]),
                                   data<T>(gates[d]),
                                   data<float>(cells[d]),
                                   d_output.defined() ? data<T>(d_output) + d * hidden : nullptr,
                                   d_cells.defined() ? data<float>(d_cells[d]) : nullptr,
                                   data<T>(d_gates[d]),
                                   data<T>(d_h[d]),
                                   data<float>(d_c[d]),
                                   h_mask.defined() ? data<T>(h_mask[d]) : nullptr,
                                   zones.all(d)};
    }
    return launch_persistent_backward(call, choice.task, choice.plan.tiling,
                                      c10::cuda::getCurrentCUDAStream());
  };
  if (!launch_directions(layer, choice, "launch_persistent_backward", launch)) return std::nullopt;

  Tensor grad_input =
      input_needs_grad ? at::empty({rows, input.size(1)}, options) : at::empty({0}, options);
  std::vector<Tensor> grad_weights;
  for (int64_t d = 0; d < directions; ++d) {
    if (per_row) {
      grad_weights.push_back(d_gates[d].view(saved.gates[d].sizes()));
    } else {
      const Tensor h_prev = h_prev_of(d);
      const Tensor transposed = d_gates[d].t();
      grad_weights.push_back(at::mm(transposed, input));
      grad_weights.push_back(at::mm(transposed, h_prev));
      if (layer.has_bias()) grad_weights.push_back(d_gates[d].sum(0));
    }
    if (!input_needs_grad) continue;
    if (d == 0)
      at::mm_out(grad_input, d_gates[d], layer.directions[d].w_ih);
    else
      grad_input.addmm_(d_gates[d], layer.directions[d].w_ih);
  }
  return BackwardResult{input_needs_grad ? grad_input.view(layer.input.sizes()) : grad_input, d_h,
                        d_c.to(options.dtype()), grad_weights};
}

// --- the ops ---

template <typename T, typename A>
ForwardResult forward(const Layer& layer, bool save_cells, bool save_gates,
                      c10::string_view engine) {
  const Choice choice = choose(engine, layer, /*backward=*/false);
  Tensor gates;
  if constexpr (!std::is_same_v<T, double>)
    if (choice.plan.persistent)
      if (auto done = persistent_forward<T>(layer, choice, save_cells, save_gates, gates))
        return *done;
  return stepwise_forward<T, A, CudaKernels>(layer, save_cells, save_gates, gates,
                                             choice.plan.tiling.directions);
}

template <typename T, typename A>
BackwardResult backward(const Layer& layer, Saved saved, const OutputGrads& grads,
                        bool input_needs_grad, bool state_needs_grad, c10::string_view engine,
                        bool per_row) {
  const Choice choice = choose(engine, layer, /*backward=*/true);
  if constexpr (!std::is_same_v<T, double>)
    if (choice.plan.persistent)
      if (auto done = persistent_backward<T>(layer, choice, saved, grads, input_needs_grad,
                                             state_needs_grad, per_row))
        return *done;
  return stepwise_backward<T, A, CudaKernels>(layer, saved, grads, input_needs_grad,
                                              state_needs_grad, per_row);
}

ForwardResult lstm_cuda(const Tensor& input, const Tensor& h_0, const Tensor& c_0,
                        at::TensorList weights, const OptionalTensor& batch_sizes,
                        const OptionalTensor& lengths, const OptionalTensor& reset,
                        const OptionalTensor& h_mask, const OptionalTensor& zoneout_h,
                        const OptionalTensor& zoneout_c, bool save_cells, bool save_gates,
                        bool /*recompute*/, c10::string_view engine) {
  const Layer layer = check_layer(input, h_0, c_0, weights, batch_sizes, lengths, reset, h_mask,
                                  zoneout_h, zoneout_c);
  check_values(layer);
  const c10::cuda::CUDAGuard device(input.device());
  const GemmPrecision precision(input.scalar_type());
  const auto run = [&](auto function) { return function(layer, save_cells, save_gates, engine); };
  switch (input.scalar_type()) {
    case at::kDouble:
      return run(forward<double, double>);
    case at::kBFloat16:
      return run(forward<bfloat16, float>);
    case at::kHalf:
      return run(forward<float16, float>);
    default:
      return run(forward<float, float>);
  }
}

BackwardResult lstm_backward_cuda(const OptionalTensor& grad_output, const OptionalTensor& grad_h_n,
                                  const OptionalTensor& grad_c_n, const OptionalTensor& grad_cells,
                                  const Tensor& input, const Tensor& h_0, const Tensor& c_0,
                                  at::TensorList weights, const OptionalTensor& batch_sizes,
                                  const OptionalTensor& lengths, const OptionalTensor& reset,
                                  const OptionalTensor& h_mask, const OptionalTensor& zoneout_h,
                                  const OptionalTensor& zoneout_c, const Tensor& output,
                                  const Tensor& cells, const Tensor& gates, bool input_needs_grad,
                                  bool state_needs_grad, c10::string_view engine, bool per_row) {
  const Layer layer = check_layer(input, h_0, c_0, weights, batch_sizes, lengths, reset, h_mask,
                                  zoneout_h, zoneout_c);
  check_values(layer);
  const Saved saved = check_saved(layer, output, cells, gates, per_row);
  const OutputGrads grads = check_grads(layer, grad_output, grad_h_n, grad_c_n, grad_cells);
  const c10::cuda::CUDAGuard device(input.device());
  const GemmPrecision precision(input.scalar_type());
  const auto run = [&](auto function) {
    return function(layer, saved, grads, input_needs_grad, state_needs_grad, engine, per_row);
  };
  switch (input.scalar_type()) {
    case at::kDouble:
      return run(backward<double, double>);
    case at::kBFloat16:
      return run(backward<bfloat16, float>);
    case at::kHalf:
      return run(backward<float16, float>);
    default:
      return run(backward<float, float>);
  }
}

}  // namespace
}  // namespace fastlstm

TORCH_LIBRARY_IMPL(fastlstm, CUDA, m) {
  m.impl("lstm", &fastlstm::lstm_cuda);
  m.impl("lstm_backward", &fastlstm::lstm_backward_cuda);
}
