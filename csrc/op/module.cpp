// The Python module fastlstm._C. Importing it registers the ops. It also offers the forward op as
// plain functions: the same calls through the dispatcher, a few microseconds cheaper than
// torch.ops, which matters when a call makes a single step.
#include <ATen/autocast_mode.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/lstm_cell.h>
#include <ATen/record_function.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/utils/pybind.h>

#include "core/call.h"
#include "core/layer.h"
#include "core/operators.h"
#include "core/packed.h"
#include "core/torch_versions.h"
#include "cpu/plan.h"
#include "cpu/scratch.h"
#include "cpu/targets/kernels.h"
#include "cuda/plan.h"
#include "cuda/request.h"
#include "op/backward.h"

namespace py = pybind11;
using namespace py::literals;

namespace fastlstm {
namespace {

// The instructions of a product, and the rows and columns of a register tile.
template <typename T>
std::tuple<std::string, int64_t, int64_t> describe(const Product<T>& product) {
  return {product.instructions, product.rows, product.vectors * product.lanes};
}

py::dict build_info() {
  const py::dict products(
      "float32"_a = describe(product_of<float>()), "float64"_a = describe(product_of<double>()),
      "bfloat16"_a = describe(product_of<bfloat16>()), "int8"_a = describe(product_of<int8>()));
  return py::dict("cpu_capability"_a = kernel_table().target,
                  "multiplies_bfloat16"_a = kernel_table().BFloat16.product != nullptr,
                  "l2_cache_bytes"_a = l2_cache_bytes(), "products"_a = products,
                  "leaves_steps_to_aten"_a = kernel_table().tuning.leaves_steps_to_aten,
                  "row_left_to_aten"_a = kernel_table().tuning.row_left_to_aten);
}

// By Dtype; the last is of weights alone.
constexpr const char* kDtypeNames[] = {"float64", "float32", "bfloat16",
                                       "float16", "int8",    "bfloat16x3"};

Dtype dtype_named(const std::string& name) {
  for (int k = 0; k < 4; ++k)
    if (name == kDtypeNames[k]) return static_cast<Dtype>(k);
  throw std::invalid_argument(
      R"(dtype: expected "float32", "float64", "bfloat16" or "float16", got ")" + name + '"');
}

// `constants`: other values for some of kPlanConstants, by name.
CudaDevice device_with(int sm_count, int capability, const py::dict& constants) {
  CudaDevice device = CudaDevice::of(sm_count, capability);
  for (const auto& [key, value] : constants) {
    const auto name = key.cast<std::string>();
    const auto found = std::find_if(std::begin(kPlanConstants), std::end(kPlanConstants),
                                    [&](const PlanConstant& c) { return name == c.name; });
    if (found == std::end(kPlanConstants))
      throw std::invalid_argument(R"(constants: the planner has none called ")" + name + '"');
    device.*(found->value) = value.cast<double>();
  }
  return device;
}

py::dict cuda_constants(int sm_count, int capability) {
  const CudaDevice device = CudaDevice::of(sm_count, capability);
  py::dict constants;
  for (const PlanConstant& constant : kPlanConstants)
    constants[constant.name] = device.*(constant.value);
  return constants;
}

// Takes the fields of Task and more one by one, as Python passes them.
py::dict plan_cuda(int64_t hidden_size, int64_t batch, int64_t steps, int directions,
                   const std::string& dtype, bool allow_tf32, bool backward, int sm_count,
                   int capability, const std::string& engine, const py::dict& constants) {
  if (hidden_size < 1 || batch < 1 || steps < 1 || sm_count < 1 || directions < 1 || directions > 2)
    throw std::invalid_argument(
        "expected hidden_size, batch, steps and sm_count of at least 1 and 1 or 2 directions");
  const auto request = parse_engine(engine);
  if (!request)
    throw std::invalid_argument(R"(engine: expected "auto", "stepwise", "persistent" or )"
                                R"("persistent:UNITSxROW_TILExROW_GROUPS", got ")" +
                                engine + '"');
  const bool only_stepwise = request->engine == EngineRequest::kStepwise;
  const Task task{hidden_size,        batch,      steps,         directions,
                  dtype_named(dtype), allow_tf32, only_stepwise, backward};
  const CudaDevice device = device_with(sm_count, capability, constants);
  const Plan chosen = request->engine == EngineRequest::kPersistent
                          ? plan_persistent(task, device, request->division)
                          : plan(task, device);
  const Tiling& tiling = chosen.tiling;  // times are predicted, not measured
  return py::dict("engine"_a = chosen.engine(), "step_us"_a = chosen.step_us,
                  "stepwise_step_us"_a = chosen.stepwise_step_us, "units"_a = tiling.units,
                  "shared_bytes"_a = chosen.shared_bytes,
                  "shared_bytes_available"_a = device.shared_bytes, "row_tile"_a = tiling.row_tile,
                  "unit_blocks"_a = tiling.unit_blocks, "row_groups"_a = tiling.row_groups,
                  "group_rows"_a = tiling.group_rows, "directions"_a = tiling.directions,
                  "blocks"_a = chosen.persistent ? tiling.blocks() : 0);
}

bool is_refused(int device, int64_t hidden_size, int64_t batch, int directions,
                const std::string& dtype, bool training) {
  Task task{hidden_size, batch, 1, directions, dtype_named(dtype), rnn_allows_tf32(), false, false};
  if (Refusals::contain(device, task)) return true;
  task.backward = true;
  return training && Refusals::contain(device, task);
}

// A plain layer on this processor, with these threads and this cache; times are predicted.
py::dict plan_cpu(const std::string& dtype, int64_t input_size, int64_t hidden_size, int64_t batch,
                  int64_t steps, int64_t directions, bool training, bool backward, int64_t threads,
                  int64_t l2_cache_bytes) {
  const auto least = std::min({input_size, hidden_size, batch, steps, threads, l2_cache_bytes});
  if (least < 1 || directions < 1 || directions > 2)
    throw std::invalid_argument("expected sizes of at least 1 and 1 or 2 directions");
  const CpuTask task{.dtype = dtype_named(dtype),
                     .directions = directions,
                     .steps = steps,
                     .batch = batch,
                     .rows = steps * batch,
                     .input_size = input_size,
                     .hidden_size = hidden_size,
                     .output_size = hidden_size,
                     .saves = training,
                     .backward = backward};
  CpuMachine machine = cpu_machine();
  machine.threads = threads, machine.l2_cache_bytes = l2_cache_bytes;
  const CpuPlan chosen = plan(task, machine);
  const auto name = [](Dtype dtype) { return kDtypeNames[static_cast<int>(dtype)]; };
  return py::dict("engine"_a = chosen.engine == CpuEngine::kTiled ? "tiled" : "stepwise",
                  "dtype"_a = name(chosen.dtype), "product"_a = name(chosen.product),
                  "one_step"_a = chosen.one_step, "unit_groups"_a = chosen.grid.unit_groups,
                  "row_groups"_a = chosen.grid.row_groups, "directions"_a = chosen.grid.directions,
                  "step_us"_a = chosen.step_us, "steps_ahead"_a = chosen.steps_ahead,
                  "chunk_steps"_a = chosen.chunk_steps);
}

// The op without save_gates; its arguments are those of the schema.
std::tuple<Tensor, Tensor, Tensor, Tensor> lstm(
    const Tensor& input, const Tensor& h_0, const Tensor& c_0, const std::vector<Tensor>& weights,
    const std::string& layout, const OptionalTensor& batch_sizes, const OptionalTensor& lengths,
    const OptionalTensor& reset, const OptionalTensor& h_mask, const OptionalTensor& zoneout_h,
    const OptionalTensor& zoneout_c, bool save_cells, bool recompute, const std::string& engine) {
  py::gil_scoped_release no_gil;
  auto [output, h_n, c_n, cells, gates] = call_lstm(
      {input, h_0, c_0, weights, layout, batch_sizes, lengths, reset, h_mask, zoneout_h, zoneout_c},
      {save_cells, /*save_gates=*/false, recompute, engine});
  return {output, h_n, c_n, save_cells ? cells : Tensor()};
}

// Whether MKL, which ATen calls, reads the weights of this step faster than we do.
bool is_left_to_aten(const LstmCall& call, const std::string& engine) {
  const Tensor& x = call.input;
  return engine == "auto" && (call.layout.empty() || call.layout == "bias") &&
         call.weights.size() >= 2 && !at::GradMode::is_enabled() &&
         (call.weights[0].numel() + call.weights[1].numel()) / 4 >=
             kernel_table().tuning.row_left_to_aten &&
         x.is_cpu() && x.scalar_type() == at::kFloat && x.dim() == 3 && x.size(1) == 1 &&
         !at::autocast::is_autocast_enabled(at::kCPU);
}

// input [B,I], h and c [B,H]
std::tuple<Tensor, Tensor> lstm_cell(const Tensor& input, const Tensor& h, const Tensor& c,
                                     const std::vector<Tensor>& weights, const std::string& layout,
                                     const std::string& engine) {
  py::gil_scoped_release no_gil;
  // Without gradients the five views need no tracking, which costs as much as a small step.
  std::optional<at::AutoDispatchBelowADInplaceOrView> guard;
  if (!at::GradMode::is_enabled()) guard.emplace();
  const Tensor x = input.unsqueeze(0), h_0 = h.unsqueeze(0), c_0 = c.unsqueeze(0);
  const OptionalTensor none;
  const LstmCall call{x, h_0, c_0, weights, layout, none, none, none, none, none, none};
  if (is_left_to_aten(call, engine)) {
    check_layer(call);
    const bool bias = layout == "bias";
    return at::lstm_cell(input, {h, c}, weights[0], weights[1], bias ? weights[2] : Tensor(),
                         bias ? weights[3] : Tensor());
  }
  const auto [output, h_n, c_n, cells, gates] =
      call_lstm(call, {/*save_cells=*/false, /*save_gates=*/false, false, engine});
  // Backward needs the output again, so the user must not write to it; h_n is a copy for them. To
  // autograd what they get is no view: hooks of a view are lost when it is written to.
  return {at::_unsafe_view(h_n, h_n.sizes().slice(1)), at::_unsafe_view(c_n, c_n.sizes().slice(1))};
}

// Without the dispatcher: there is no gradient and one device.
PackedResult lstm_packed(const Tensor& input, const Tensor& h_0, const Tensor& c_0,
                         const std::vector<Tensor>& weights, const std::string& layout,
                         const OptionalTensor& batch_sizes, const OptionalTensor& lengths,
                         const OptionalTensor& reset, bool save_cells) {
  py::gil_scoped_release no_gil;
  RECORD_FUNCTION("fastlstm::lstm_packed", std::vector<c10::IValue>());
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  const Tensor x = in_memory(input), h = in_memory(h_0), c = in_memory(c_0);
  const OptionalTensor none;
  auto [output, h_n, c_n, cells] = lstm_packed_cpu(
      {x, h, c, weights, layout, batch_sizes, lengths, reset, none, none, none}, {save_cells});
  return {output, h_n, c_n, save_cells ? cells : Tensor()};  // None is made faster than a tensor
}

std::tuple<Tensor, Tensor> lstm_cell_packed(const Tensor& input, const Tensor& h_0,
                                            const Tensor& c_0, const std::vector<Tensor>& weights,
                                            const std::string& layout) {
  py::gil_scoped_release no_gil;
  RECORD_FUNCTION("fastlstm::lstm_packed", std::vector<c10::IValue>());
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  const Tensor x = in_memory(input), h = in_memory(h_0), c = in_memory(c_0);
  if (x.dim() == 2 && h.dim() == 2 && c.dim() == 2)
    if (const auto step = lstm_packed_step({x, h, c, weights, layout})) return *step;
  const OptionalTensor none;
  const auto [output, h_n, c_n, cells] =
      lstm_packed_cpu({x.unsqueeze(0), h.unsqueeze(0), c.unsqueeze(0), weights, layout, none, none,
                       none, none, none, none},
                      {false});
  return {h_n.squeeze(0), c_n.squeeze(0)};
}

}  // namespace
}  // namespace fastlstm

PYBIND11_MODULE(_C, m) {
  // As torch raises errors of C++: without frames of the stack, and some as classes of their own.
  py::register_local_exception_translator([](std::exception_ptr error) {
    try {
      std::rethrow_exception(error);
    } catch (const c10::Error&) {
      torch::translate_exception_to_python(error);
    }
  });
  m.doc() = "Native kernels of fastlstm; the ops are torch.ops.fastlstm.*";
  m.def("build_info", &fastlstm::build_info,
        "What was compiled in, and the instruction set that the CPU kernels use on this machine.");
  m.def("release_scratch", &fastlstm::release_scratch,
        "Give back the memory that the CPU engine keeps for its next call; returns the bytes.");
  m.def("plan_cpu", &fastlstm::plan_cpu, "dtype"_a, "input_size"_a, "hidden_size"_a, "batch"_a,
        "steps"_a, "directions"_a, "training"_a, "backward"_a, "threads"_a, "l2_cache_bytes"_a,
        "How a plain layer would run on this processor, with other threads or caches too.");
  m.def("plan_cuda", &fastlstm::plan_cuda, "hidden_size"_a, "batch"_a, "steps"_a, "directions"_a,
        "dtype"_a, "allow_tf32"_a, "backward"_a, "sm_count"_a, "capability"_a, "engine"_a = "auto",
        "constants"_a = py::dict(),
        "The engine that a layer would get on a CUDA device, which need not be present.");
  m.def("is_refused", &fastlstm::is_refused, "device"_a, "hidden_size"_a, "batch"_a, "directions"_a,
        "dtype"_a, "training"_a,
        "Whether a GPU refused to launch the persistent engine for such a layer.");
  m.def("cuda_constants", &fastlstm::cuda_constants, "sm_count"_a, "capability"_a,
        "The constants of the CUDA planner's predictions, by name.");
  m.def("free_sms", &fastlstm::free_sms,
        "How many multiprocessors of a GPU are left to other streams: FASTLSTM_FREE_SMS.");
  m.def(
      "set_default_free_sms", [](int count) { fastlstm::default_free_sms = count; },
      "Sets what free_sms() is without FASTLSTM_FREE_SMS.");
  m.def("lstm", &fastlstm::lstm, "torch.ops.fastlstm.lstm without its last result");
  m.def("lstm_cell", &fastlstm::lstm_cell, "One step; like torch.ops.fastlstm.lstm with T = 1");
  m.def("pack_weight", &fastlstm::pack_weight, "A weight in the panels of this processor");
  m.def("unpack_weight", &fastlstm::unpack_weight, "The opposite of pack_weight");
  m.def("lstm_packed", &fastlstm::lstm_packed, "torch.ops.fastlstm.lstm_packed");
  m.def("lstm_cell_packed", &fastlstm::lstm_cell_packed, "One step; input [B,I], h and c [B,H]");
  m.def("lstm_backward_of_samples", &fastlstm::lstm_backward_of_samples, "tensors"_a, "batched"_a,
        "layout"_a, "input_needs_grad"_a, "state_needs_grad"_a, "per_row"_a = false,
        "engine"_a = "auto",
        "torch.ops.fastlstm.lstm_backward with some tensors batched; see backward.h");
}
