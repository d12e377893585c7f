// The planner over thousands of shapes and known devices, none of which is here.
#include "../../csrc/cuda/plan.h"
#include "../../csrc/cuda/request.h"
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

void check_tiling(const Tiling& t, const Task& task, const Card& card) {
  const std::string where =
      testing::text(card.name, " H ", task.hidden_size, " B ", task.batch, " T ", task.steps, " D ",
                    task.directions, " dtype ", int(task.dtype), " tf32 ", task.allow_tf32,
                    " backward ", task.backward, ": ");
  const auto device = CudaDevice::of(card.sms, card.capability);
  check(card.capability >= 80, where, "no tensor cores for it");
  check(task.dtype != Dtype::kFloat64, where, "not a task for this engine");
  check(is_compiled(task.ffma(), t.units, t.row_tile), where, "a tile that is not compiled");
  check(t.blocks() >= 1 && t.blocks() <= card.sms, where, t.blocks(), " blocks");
  check(int64_t(t.unit_blocks) * t.units >= task.hidden_size &&
            int64_t(t.unit_blocks - 1) * t.units < task.hidden_size,
        where, "units are left out or a block has none");
  check(int64_t(t.row_groups) * t.group_rows >= task.batch && t.row_groups <= task.batch, where,
        "rows are left out or a group has none");
  check(t.directions >= 1 && t.directions <= task.directions, where, t.directions, " directions");
  check(t.shared_bytes == shared_bytes_of(task, t) && t.shared_bytes <= device.shared_bytes, where,
        t.shared_bytes, " bytes of shared memory");
  check(t.shared_bytes > matrix_rows(task.backward, t.units) * task.depth() * task.element_bytes(),
        where, "the slice does not fit its place");
  check(t.exchange_width >= task.hidden_size && t.exchange_width <= t.unit_blocks * t.units, where,
        t.exchange_width, " values exchanged");
  check(task.depth() * task.element_bytes() % 16 == 0, where, "rows are not aligned");
}

const Case fits("plan/what is divided fits", [] {
  std::mt19937 random(1);
  const auto draw = [&](int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(random);
  };
  int divided = 0;
  for (int n = 0; n < 20000; ++n) {
    Task task{};
    task.hidden_size = draw(1, int64_t{1} << draw(0, 13));
    task.batch = draw(0, int64_t{1} << draw(0, 17));
    task.steps = draw(1, int64_t{1} << draw(0, 16));
    task.directions = static_cast<int>(draw(1, 2));
    task.dtype = static_cast<Dtype>(draw(0, 3));
    task.allow_tf32 = draw(0, 1);
    task.backward = draw(0, 1);
    const Card& card = kCards[draw(0, 7)];
    const auto device = CudaDevice::of(card.sms, card.capability);
    const auto chosen = divide(task, device);
    if (chosen) check_tiling(*chosen, task, card), ++divided;
    const Division division = {8 << draw(0, 2), 8, static_cast<int>(draw(1, 4))};
    const auto forced = divide(task, device, division);
    if (!forced) continue;
    check_tiling(*forced, task, card);
    check(forced->units == division.units && forced->row_tile == division.row_tile &&
              forced->row_groups == division.row_groups,
          "not divided as asked");
    if (forced->row_groups > divide_up(task.batch, 8)) continue;  // groups of less than a tile
    check(chosen && step_clocks(task, *chosen, card.sms) <= step_clocks(task, *forced, card.sms),
          "not the one with the fewest clocks");
  }
  check(divided > 6000, "only ", divided, " of 20000 fit");
});

// The shapes that the engine was built for.
const Case targets("plan/the shapes to win fit an H100", [] {
  const auto h100 = CudaDevice::of(132, 90);
  for (bool backward : {false, true}) {
    for (int64_t hidden : {256, 512})
      for (int64_t batch : {1, 16, 64, 128})
        check(divide({hidden, batch, 512, 1, Dtype::kBFloat16, true, backward}, h100).has_value(),
              "bfloat16, H ", hidden, ", B ", batch);
    for (int64_t batch : {1, 16, 64})
      check(divide({1024, batch, 512, 1, Dtype::kBFloat16, true, backward}, h100).has_value(),
            "bfloat16, H 1024, B ", batch);
    for (int64_t hidden : {256, 512})
      for (int64_t batch : {1, 16})
        check(divide({hidden, batch, 512, 1, Dtype::kFloat32, true, backward}, h100).has_value(),
              "TF32, H ", hidden, ", B ", batch);
    const auto two = divide({512, 32, 512, 2, Dtype::kBFloat16, true, backward}, h100);
    check(two && two->directions == 2, "both directions in one launch");
  }
});

const Case others("plan/what it cannot do", [] {
  const auto h100 = CudaDevice::of(132, 90);
  const Task good{256, 16, 64, 1, Dtype::kBFloat16, true, false};
  check(divide(good, h100).has_value(), "this one it can do");
  Task task = good;
  task.dtype = Dtype::kFloat64;
  check(!divide(task, h100), "float64");
  task = good, task.hidden_size = 4096;
  check(!divide(task, h100), "weights beyond all shared memory");
  task = good, task.batch = 0;
  check(!divide(task, h100), "an empty batch");
  check(!divide(good, CudaDevice::of(40, 75)), "no bfloat16 mma before sm_80");
  check(!divide(good, CudaDevice::of(0, 90)), "no multiprocessor is left");
});

const Case names("plan/an engine by name", [] {
  check(!parse_engine("auto")->persistent && !parse_engine("stepwise")->persistent, "stepwise");
  const auto any = parse_engine("persistent"), one = parse_engine("persistent:16x8x120");
  check(any->persistent && any->division.units == 0, "persistent");
  check(one->persistent && one->division.units == 16 && one->division.row_tile == 8 &&
            one->division.row_groups == 120,
        "a division");
  for (const char* name :
       {"", "Auto", "tiled", "persistent:", "persistent:8x8", "persistent:8x8x1x",
        "persistent:0x8x1", "persistent:8x-8x1", "persistent:99999x8x1", "stepwise "})
    check(!parse_engine(name), name, " is no engine");
});

const Case free_multiprocessors("plan/multiprocessors left free", [] {
  for (const char* text : {static_cast<const char*>(nullptr), "", "0"})
    check(parse_free_sms(text) == 0, "none");
  check(parse_free_sms("16") == 16, "16");
  for (const char* text : {"-1", "x", "1x", " ", "99999999999"}) {
    bool refused = false;
    try {
      parse_free_sms(text);
    } catch (const std::invalid_argument& error) {
      refused = std::string(error.what()).find(text) != std::string::npos;
    }
    check(refused, text, " is no number of them");
  }
});

}  // namespace
