// The planner over thousands of shapes on the constants of known devices, none of which is here.
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

void check_plan(const Plan& plan, const Task& task, const Card& card) {
  const std::string where =
      testing::text(card.name, " H ", task.hidden_size, " B ", task.batch, " T ", task.steps, " D ",
                    task.directions, " dtype ", int(task.dtype), " tf32 ", task.allow_tf32,
                    " backward ", task.backward, ": ");
  check(plan.step_us > 0 && std::isfinite(plan.step_us), where, "no time predicted");
  if (!plan.persistent) return;
  const auto& t = plan.tiling;
  const auto device = CudaDevice::of(card.sms, card.capability);
  check(card.capability >= 80, where, "no tensor cores for it");
  check(task.dtype != Dtype::kFloat64 && !task.only_stepwise, where, "not a task for this engine");
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

const Case fits_or_stepwise("plan/fits or is stepwise", [] {
  std::mt19937 random(1);
  const auto draw = [&](int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(random);
  };
  int persistent = 0;
  for (int n = 0; n < 20000; ++n) {
    Task task{};
    task.hidden_size = draw(1, int64_t{1} << draw(0, 13));
    task.batch = draw(0, int64_t{1} << draw(0, 17));
    task.steps = draw(1, int64_t{1} << draw(0, 16));
    task.directions = static_cast<int>(draw(1, 2));
    task.dtype = static_cast<Dtype>(draw(0, 3));
    task.allow_tf32 = draw(0, 1);
    task.only_stepwise = draw(0, 9) == 0;
    task.backward = draw(0, 1);
    const Card& card = kCards[draw(0, 7)];
    const auto device = CudaDevice::of(card.sms, card.capability);
    const Plan chosen = plan(task, device);
    check_plan(chosen, task, card);
    check(chosen.step_us <= chosen.stepwise_step_us, "a slower engine was chosen");
    persistent += chosen.persistent;
    const Division division = {8 << draw(0, 2), 8, static_cast<int>(draw(1, 4))};
    const Plan forced = plan_persistent(task, device, division);
    check_plan(forced, task, card);
    if (forced.persistent)
      check(forced.tiling.units == division.units && forced.tiling.row_tile == division.row_tile &&
                forced.tiling.row_groups == division.row_groups,
            "not divided as asked");
  }
  check(persistent > 4000, "only ", persistent, " of 20000 plans are persistent");
});

// The shapes that the engine was built for.
const Case targets("plan/the shapes to win are persistent on an H100", [] {
  const auto h100 = CudaDevice::of(132, 90);
  for (bool backward : {false, true}) {
    for (int64_t hidden : {256, 512})
      for (int64_t batch : {1, 16, 64, 128})
        check(
            plan({hidden, batch, 512, 1, Dtype::kBFloat16, true, false, backward}, h100).persistent,
            "bfloat16, H ", hidden, ", B ", batch);
    for (int64_t batch : {1, 16}) {
      check(plan({1024, batch, 512, 1, Dtype::kBFloat16, true, false, backward}, h100).persistent,
            "bfloat16, H 1024, B ", batch);
      for (int64_t hidden : {256, 512})
        check(
            plan({hidden, batch, 512, 1, Dtype::kFloat32, true, false, backward}, h100).persistent,
            "TF32, H ", hidden, ", B ", batch);
    }
    check(plan({1024, 64, 512, 1, Dtype::kBFloat16, true, false, backward}, h100).persistent,
          "bfloat16, H 1024, B 64");
    const Plan two = plan({512, 32, 512, 2, Dtype::kBFloat16, true, false, backward}, h100);
    check(two.persistent && two.tiling.directions == 2, "both directions in one launch");
  }
});

const Case others("plan/what it cannot do is stepwise", [] {
  const auto h100 = CudaDevice::of(132, 90);
  const auto chosen = [&](const Task& task, const CudaDevice& device) {
    return plan(task, device).persistent || plan_persistent(task, device).persistent;
  };
  const Task good{256, 16, 64, 1, Dtype::kBFloat16, true, false, false};
  check(chosen(good, h100), "this one it can do");
  Task task = good;
  task.dtype = Dtype::kFloat64;
  check(!chosen(task, h100), "float64");
  task = good, task.only_stepwise = true;
  check(!chosen(task, h100), "a projection");
  task = good, task.hidden_size = 4096;
  check(!chosen(task, h100), "weights beyond all shared memory");
  task = good, task.batch = 0;
  check(!chosen(task, h100), "an empty batch");
  check(!chosen(good, CudaDevice::of(40, 75)), "no bfloat16 mma before sm_80");
  task = good, task.steps = 1;
  for (task.directions = 1; task.directions <= 2; ++task.directions)
    check(!plan(task, h100).persistent, "one step is not worth filling shared memory for");
});

const Case costs("plan/what a step costs", [] {
  const auto h100 = CudaDevice::of(132, 90);
  const auto persistent = [&](int64_t hidden, int64_t batch, bool backward) {
    return plan_persistent({hidden, batch, 512, 1, Dtype::kBFloat16, true, false, backward}, h100)
        .step_us;
  };
  for (bool backward : {false, true})  // rows of 300 values are padded
    check(persistent(300, 64, backward) < 1.1 * persistent(304, 64, backward), "padding is cheap");
  CudaDevice once = h100;
  once.repeated_polls = 0;
  for (bool backward : {false, true}) {
    for (int64_t batch : {32, 64}) {
      const Task task{512, batch, 512, 1, Dtype::kBFloat16, true, false, backward};
      const bool again = plan_persistent(task, h100).step_us > plan_persistent(task, once).step_us;
      check(again == (backward || batch >= 64), "polls again, B ", batch, " backward ", backward);
    }
  }
  const Task task{64, 1, 512, 2, Dtype::kBFloat16, true, false, false};
  check(predict_stepwise(task, h100) == 2 * h100.host_step_us, "the host launches two a step");
});

// The share of the state that warps load twice: what each of eight has in flight, of all chunks.
const Case polls_in_vain("plan/what a repeated poll costs", [] {
  const auto share = [](const Task& task, int units, int row_tile) {
    CudaDevice device = CudaDevice::of(132, 90);
    const Tiling tiling = make_tiling(task, units, row_tile, 2, 1);
    device.marking_share = 1e9;
    const auto us = [&](double polls) {
      device.repeated_polls = polls;
      return predict_persistent(task, tiling, device);
    };
    device.sm_bytes_per_clock = device.l2_bytes_per_clock = 1e9;
    const double rest = us(0);
    device.sm_bytes_per_clock = 64, device.l2_bytes_per_clock = 23.8;
    return (us(1) - us(0)) / (us(0) - rest);
  };
  const auto check_share = [&](const Task& task, int units, int row_tile, double expected) {
    const double found = share(task, units, row_tile);
    check(std::abs(found - expected) < 1e-3, units, "x", row_tile, " backward ", task.backward,
          ": ", found, ", expected ", expected);
  };
  const Task backward{1024, 64, 512, 1, Dtype::kBFloat16, true, false, true};  // 128 chunks
  check_share(backward, 16, 8, 8 * 8 / 128.0);
  check_share(backward, 16, 16, 8 * 4 / 128.0);
  const Task forward{1024, 64, 512, 1, Dtype::kFloat32, true, false, false};  // 64 chunks
  check_share(forward, 8, 8, 8 * 4 / 64.0);
  check_share(forward, 8, 16, 8 * 2 / 64.0);
  check_share(forward, 32, 16, 8 * 1 / 64.0);
  Task ieee = forward;
  ieee.allow_tf32 = false;
  check_share(ieee, 8, 8, 8 * 2 / 64.0);
  const Task short_rows{256, 64, 512, 1, Dtype::kBFloat16, true, false, false};  // 8 chunks
  check_share(short_rows, 8, 8, 1);
});

const Case faster_devices("plan/predictions fall with multiprocessors and clock", [] {
  std::mt19937 random(2);
  const auto draw = [&](int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(random);
  };
  for (int n = 0; n < 2000; ++n) {
    const Task task{draw(1, 2048),     draw(1, 256),    draw(1, 200), static_cast<int>(draw(1, 2)),
                    Dtype(draw(1, 3)), draw(0, 1) == 1, false,        draw(0, 1) == 1};
    const int capability = kCards[draw(0, 7)].capability, sms = static_cast<int>(draw(0, 160));
    const double ghz = 0.1 * static_cast<double>(draw(10, 25));
    const auto us = [&](int more_sms, double more_ghz) {
      const auto device = CudaDevice::of(sms + more_sms, capability, ghz + more_ghz);
      return predict_stack(task, plan(task, device), 1, device);
    };
    const auto where = testing::text("H ", task.hidden_size, " B ", task.batch, " T ", task.steps,
                                     " dtype ", int(task.dtype), " backward ", task.backward,
                                     " on sm_", capability, ", ", sms, " SMs at ", ghz, " GHz");
    for (int more : {1, 8, 40}) check(us(more, 0) <= us(0, 0), more, " more SMs, ", where);
    for (double more : {0.1, 1.0}) check(us(0, more) <= us(0, 0), more, " more GHz, ", where);
  }
  const auto slow = CudaDevice::of(132, 90, 1), fast = CudaDevice::of(132, 90, 2);
  const Task task{512, 16, 512, 1, Dtype::kBFloat16, true, false, false};
  check(std::abs(plan(task, slow).step_us - 2 * plan(task, fast).step_us) < 1e-9, "all in clocks");
  check(CudaDevice::of(132, 90).clock_ghz == 1.75, "that of the data sheet");
});

// So that it can be fitted to measured times.
const Case constants("plan/every constant counts", [] {
  const auto costs = [](const CudaDevice& device) {
    double sum = 0;
    for (int64_t hidden : {128, 512, 1024}) {
      for (int64_t batch : {1, 16, 128}) {
        for (bool backward : {false, true}) {
          const Task task{hidden, batch, 4, 1, Dtype::kBFloat16, true, false, backward};
          sum += predict_stepwise(task, device) + plan_persistent(task, device).step_us +
                 plan(task, device).step_us;
          for (int layers : {1, 3})
            sum += predict_stack(task, plan(task, device), layers, device) +
                   predict_cudnn(task, layers, device);
        }
      }
    }
    return sum;
  };
  const auto h100 = CudaDevice::of(132, 90);
  for (const PlanConstant& constant : kPlanConstants) {
    CudaDevice more = h100, less = h100;
    more.*(constant.value) *= 8, less.*(constant.value) /= 8;
    check(costs(more) != costs(h100) || costs(less) != costs(h100), constant.name);
  }
});

const Case names("plan/an engine by name", [] {
  check(parse_engine("auto")->engine == EngineRequest::kAuto, "auto");
  check(parse_engine("stepwise")->engine == EngineRequest::kStepwise, "stepwise");
  const auto any = parse_engine("persistent"), one = parse_engine("persistent:16x8x120");
  check(any->engine == EngineRequest::kPersistent && any->division.units == 0, "persistent");
  check(one->engine == EngineRequest::kPersistent && one->division.units == 16 &&
            one->division.row_tile == 8 && one->division.row_groups == 120,
        "a division");
  for (const char* name :
       {"", "Auto", "tiled", "persistent:", "persistent:8x8", "persistent:8x8x1x",
        "persistent:0x8x1", "persistent:8x-8x1", "persistent:99999x8x1", "stepwise "})
    check(!parse_engine(name), name, " is no engine");
});

const Case free_multiprocessors("plan/multiprocessors left free", [] {
  check(!parse_free_sms(nullptr) && !parse_free_sms("") && parse_free_sms("0") == 0, "none");
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
