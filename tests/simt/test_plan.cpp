// The planner of the persistent engine, for thousands of shapes on known GPUs.
#include "../../csrc/cuda/plan.h"
#include "harness.h"

namespace {

using namespace fastlstm;
using testing::Case;
using testing::check;

struct Card {
  const char* name;
  int sms, capability;
};
constexpr Card kCards[] = {{"H100", 132, 90},  {"A100", 108, 80}, {"L4", 58, 89},
                           {"A10", 72, 86},    {"T4", 40, 75},    {"4090", 128, 89},
                           {"B200", 148, 100}, {"MIG", 14, 90}};

// Checks that a tiling covers the task and fits on the GPU.
void check_tiling(const Tiling& t, const CudaTask& task, const Card& card) {
  const std::string where =
      testing::text(card.name, " H ", task.hidden_size, " B ", task.batch, " T ", task.steps, " D ",
                    task.directions, " dtype ", int(task.dtype), " tf32 ", task.allow_tf32,
                    " backward ", task.backward, ": ");
  const auto device = CudaDevice::of(card.sms, card.capability);
  check(card.capability >= 80, where, "the GPU has no tensor cores for this engine");
  check(task.dtype != Dtype::kFloat64, where, "this engine does not support the dtype");
  check(is_compiled(task.ffma(), t.units, t.row_tile), where, "the tile is not compiled");
  check(t.blocks() >= 1 && t.blocks() <= card.sms, where, t.blocks(), " blocks");
  check(int64_t(t.unit_blocks) * t.units >= task.hidden_size &&
            int64_t(t.unit_blocks - 1) * t.units < task.hidden_size,
        where, "some units have no block, or some block has no units");
  check(int64_t(t.row_groups) * t.group_rows >= task.batch && t.row_groups <= task.batch, where,
        "some rows have no group, or some group has no rows");
  check(t.directions >= 1 && t.directions <= task.directions, where, t.directions, " directions");
  check(t.shared_bytes == shared_bytes_of(task, t) && t.shared_bytes <= device.shared_bytes, where,
        t.shared_bytes, " bytes of shared memory");
  check(t.shared_bytes > matrix_rows(task.backward, t.units) * task.k_size() * task.element_bytes(),
        where, "the slice of W_hh does not fit into shared memory");
  check(t.exchange_width >= task.hidden_size && t.exchange_width <= t.unit_blocks * t.units, where,
        t.exchange_width, " values exchanged");
  check(task.k_size() * task.element_bytes() % 16 == 0, where, "rows are not aligned");
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
    const Card& card = kCards[draw(0, 7)];
    const auto device = CudaDevice::of(card.sms, card.capability);
    const auto chosen = best_tiling(task, device);
    if (!chosen) continue;
    check_tiling(*chosen, task, card), ++with_tiling;
    const int64_t groups = draw(1, divide_up(task.batch, 8));
    const Tiling other = make_tiling(task, 8 << draw(0, 2), 8, static_cast<int>(groups), 1);
    if (other.blocks() <= card.sms && other.shared_bytes <= device.shared_bytes)
      check(step_clocks(task, *chosen, card.sms) <= step_clocks(task, other, card.sms),
            "another tiling takes fewer clocks");
  }
  check(with_tiling > 6000, "only ", with_tiling, " of 20000 tasks have a tiling");
});

const Case unsupported("plan/unsupported tasks have no tiling", [] {
  const auto h100 = CudaDevice::of(132, 90);
  const CudaTask good{256, 16, 64, 1, Dtype::kBFloat16, true, false};
  check(best_tiling(good, h100).has_value(), "a supported task has no tiling");
  CudaTask task = good;
  task.dtype = Dtype::kFloat64;
  check(!best_tiling(task, h100), "float64");
  task = good, task.hidden_size = 4096;
  check(!best_tiling(task, h100), "weights beyond all shared memory");
  task = good, task.batch = 0;
  check(!best_tiling(task, h100), "an empty batch");
  check(!best_tiling(good, CudaDevice::of(40, 75)), "no bfloat16 mma before sm_80");
  check(!best_tiling(good, CudaDevice::of(0, 90)), "no multiprocessor is left");
});

}  // namespace
