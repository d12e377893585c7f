// The planner of the persistent engine, for thousands of shapes on known GPUs.
#include "../../csrc/cuda/plan.h"
#include "harness.h"

namespace {

using namespace fastlstm;
using testing::Case;
using testing::check;

// H100, A100, L4, A10, T4, 4090, B200, and a part of an H100.
const CudaDevice kDevices[] = {CudaDevice::of(132, 90),  CudaDevice::of(108, 80),
                               CudaDevice::of(58, 89),   CudaDevice::of(72, 86),
                               CudaDevice::of(40, 75),   CudaDevice::of(128, 89),
                               CudaDevice::of(148, 100), CudaDevice::of(14, 90)};

// Checks that a tiling covers the task and fits on the GPU.
void check_tiling(const Tiling& t, const CudaTask& task, const CudaDevice& device) {
  const std::string where =
      testing::text("sm_", device.capability, " H ", task.hidden_size, " B ", task.batch, " D ",
                    task.directions, " dtype ", int(task.dtype), " backward ", task.backward, ": ");
  check(is_compiled(task.ffma(), t.units, t.row_tile), where, "the tile is not compiled");
  check(t.blocks() >= 1 && t.blocks() <= device.sm_count, where, t.blocks(), " blocks");
  check(int64_t(t.unit_blocks) * t.units >= task.hidden_size &&
            int64_t(t.unit_blocks - 1) * t.units < task.hidden_size,
        where, "some units have no block, or some block has no units");
  check(int64_t(t.row_groups) * t.group_rows >= task.batch && t.row_groups <= task.batch, where,
        "some rows have no group, or some group has no rows");
  check(t.has_passes() == (divide_up(t.group_rows, t.row_tile) > 1), where, "passes");
  check(t.directions >= 1 && t.directions <= task.directions, where, t.directions, " directions");
  check(t.shared_bytes == shared_bytes_of(task, t) && t.shared_bytes <= device.shared_bytes, where,
        t.shared_bytes, " bytes of shared memory");
  check(t.shared_bytes > matrix_rows(task.backward, t.units) * task.k_size() * bytes_of(task.dtype),
        where, "the slice of W_hh does not fit into shared memory");
  check(t.exchange_width >= task.hidden_size && t.exchange_width <= t.unit_blocks * t.units, where,
        t.exchange_width, " values exchanged");
  check(task.k_size() * bytes_of(task.dtype) % 16 == 0, where, "rows are not aligned");
}

const Case fits("plan/every tiling fits", [] {
  std::mt19937 random(1);
  const auto draw = [&](int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(random);
  };
  int with_tiling = 0;
  for (int n = 0; n < 20000; ++n) {
    CudaTask task{};
    task.hidden_size = draw(1, int64_t{1} << draw(0, 13));
    task.batch = draw(0, int64_t{1} << draw(0, 17));
    task.steps = draw(1, int64_t{1} << draw(0, 16));
    task.directions = static_cast<int>(draw(1, 2));
    task.dtype = static_cast<Dtype>(draw(0, 3));
    task.allow_tf32 = draw(0, 1);
    task.backward = draw(0, 1);
    const CudaDevice& device = kDevices[draw(0, 7)];
    const auto chosen = best_tiling(task, device);
    if (!chosen) continue;
    check_tiling(*chosen, task, device), ++with_tiling;
    const auto tight =
        best_tiling(task, {device.sm_count, device.capability, chosen->shared_bytes});
    check(tight && tight->shared_bytes == chosen->shared_bytes, "shared memory that just suffices");
    const int64_t groups = draw(1, divide_up(task.batch, 8));
    const Tiling other = make_tiling(task, 8 << draw(0, 2), 8, static_cast<int>(groups), 1);
    const auto clocks = [&](const Tiling& t) { return step_clocks(task, t, device.sm_count); };
    if (other.blocks() <= device.sm_count && other.shared_bytes <= device.shared_bytes)
      check(clocks(*chosen) <= clocks(other), "another tiling takes fewer clocks");
  }
  check(with_tiling > 6000, "only ", with_tiling, " of 20000 tasks have a tiling");
});

// The division that best_tiling chooses, the clocks of its step, and how it loads chunks.
std::string plan_of(const CudaTask& task, const CudaDevice& device) {
  const auto t = best_tiling(task, device);
  if (!t) return "none";
  const auto clocks = std::llround(10 * step_clocks(task, *t, device.sm_count));
  const int chunks = chunks_in_flight(t->ffma, task.backward, t->units, t->row_tile);
  return testing::text(t->units, "x", t->row_tile, " ", t->unit_blocks, "x", t->row_groups, "x",
                       t->directions, " ", t->group_rows, " rows ", t->exchange_width, " wide ",
                       t->shared_bytes, " bytes ", clocks, " ", chunks, " chunks");
}

// Each line: dtype or TF32, forward or backward, hidden size, batch, directions, multiprocessors
// and compute capability; then what plan_of returns. The case prints the lines that differ.
constexpr const char* kExpectedPlans =
    R"(bf16 forw  256   16 1 132 90 -> 8x8 32x2x1 8 rows 256 wide 25920 bytes 18387 4 chunks
bf16 back  256   16 1 132 90 -> 8x8 32x2x1 8 rows 256 wide 19776 bytes 19910 8 chunks
bf16 forw 1024   64 1 132 90 -> 16x16 64x2x1 32 rows 1024 wide 168192 bytes 69199 2 chunks
bf16 back 1024   64 1 132 90 -> 16x16 64x2x1 32 rows 1024 wide 143616 bytes 140957 4 chunks
tf32 back  512  128 2 132 90 -> 16x16 32x2x2 64 rows 512 wide 145920 bytes 281914 4 chunks
f32  forw  512  128 1 132 90 -> 16x8 32x4x1 32 rows 512 wide 150784 bytes 142639 2 chunks
f32  forw   64    9 1 132 90 -> 8x8 8x2x1 5 rows 64 wide 17608 bytes 17760 2 chunks
f32  back  512  128 1 132 90 -> 16x8 32x4x1 32 rows 512 wide 138496 bytes 214397 2 chunks
tf32 forw  250    1 1  58 89 -> 8x8 32x1x1 1 rows 252 wide 42024 bytes 19032 4 chunks
tf32 back  253    9 2  58 89 -> 16x16 16x1x2 9 rows 253 wide 76424 bytes 29715 4 chunks
bf16 forw  253  300 2  58 89 -> 16x16 16x3x1 100 rows 256 wide 74784 bytes 226830 2 chunks
bf16 back  253  300 2  58 89 -> 32x16 8x7x1 43 rows 254 wide 89816 bytes 151909 4 chunks
bf16 forw  100 4000 1 132 90 -> 32x16 4x32x1 125 rows 104 wide 117352 bytes 157065 1 chunks
bf16 forw 4096   16 1 132 90 -> none
bf16 forw  256    0 1 132 90 -> none
bf16 forw  256   16 1  40 75 -> none
bf16 forw  256   16 1   0 90 -> none
)";

const Case expected("plan/expected", [] {
  for (const auto& [capability, kib] : std::map<int, int64_t>{
           {75, 48}, {80, 163}, {86, 99}, {89, 99}, {90, 227}, {100, 227}, {120, 99}})
    check(CudaDevice::of(1, capability).shared_bytes == 1024 * kib, "shared memory: ", capability);
  std::istringstream lines(kExpectedPlans);
  std::string line, wrong, dtype, mode;
  while (std::getline(lines, line)) {
    CudaTask task{0, 0, /*steps=*/9, 1, Dtype::kFloat32, false};
    int sms = 0, capability = 0;
    std::istringstream(line) >> dtype >> mode >> task.hidden_size >> task.batch >>
        task.directions >> sms >> capability;
    task.dtype = dtype == "bf16" ? Dtype::kBFloat16 : Dtype::kFloat32;
    task.allow_tf32 = dtype == "tf32", task.backward |= mode == "back";
    const size_t arrow = line.find("-> ") + 3;
    const auto found = plan_of(task, CudaDevice::of(sms, capability));
    if (found != line.substr(arrow)) wrong += "\n" + line.substr(0, arrow) + found;
  }
  check(wrong.empty(), wrong);
  const auto has_plan = [](int64_t hidden_size, int64_t steps, Dtype dtype, int capability = 80) {
    const CudaDevice device = CudaDevice::of(132, capability);
    return best_tiling({hidden_size, 9, steps, 1, dtype, false}, device).has_value();
  };
  check(has_plan(1, 1, Dtype::kFloat32) && has_plan(1, INT32_MAX - 1, Dtype::kFloat32), "limits");
  check(!has_plan(0, 1, Dtype::kFloat32) && !has_plan(1, 0, Dtype::kFloat32), "empty");
  check(!has_plan(1, INT32_MAX, Dtype::kFloat32), "steps do not fit into an int");
  check(!has_plan(1, 1, Dtype::kFloat64) && !has_plan(1, 1, Dtype::kFloat32, 79), "not supported");
});

}  // namespace
