// What a user asks of the CUDA engines, one of them by name and multiprocessors for other streams,
// and what a GPU refused.
#pragma once
#include <array>
#include <atomic>
#include <charconv>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <optional>
#include <set>
#include <stdexcept>
#include <string>

#include "plan.h"

namespace fastlstm {

struct EngineRequest {
  enum Engine { kAuto, kStepwise, kOneStep, kPersistent } engine;
  Division division;  // of the persistent engine
};

// "auto", "stepwise", "one_step", "persistent" or "persistent:UNITSxROW_TILExROW_GROUPS"; nothing
// for others.
inline std::optional<EngineRequest> parse_engine(const std::string& name) {
  if (name == "auto") return EngineRequest{EngineRequest::kAuto, {}};
  if (name == "stepwise") return EngineRequest{EngineRequest::kStepwise, {}};
  if (name == "one_step") return EngineRequest{EngineRequest::kOneStep, {}};
  if (name == "persistent") return EngineRequest{EngineRequest::kPersistent, {}};
  int numbers[3];
  if (!parse_division(name, "persistent", numbers)) return std::nullopt;
  return EngineRequest{EngineRequest::kPersistent, {numbers[0], numbers[1], numbers[2]}};
}

// Nothing where the user says nothing.
inline std::optional<int> parse_free_sms(const char* text) {
  if (!text || !*text) return std::nullopt;
  int count = 0;
  const char* const end = text + std::strlen(text);
  const auto [next, error] = std::from_chars(text, end, count);
  if (error != std::errc() || next != end || count < 0)
    throw std::invalid_argument(
        std::string("FASTLSTM_FREE_SMS: expected a number of multiprocessors, 0 or more, got \"") +
        text + "\"");
  return count;
}

// A device, the SMs that are left free, and a task.
using PlannedTask = std::array<int64_t, 10>;
inline PlannedTask planned_task(int device, int free_sms, const Task& task) {
  return {device,          free_sms,        task.hidden_size, task.batch,         task.steps,
          task.directions, int(task.dtype), task.allow_tf32,  task.only_stepwise, task.backward};
}

// Tasks whose persistent launch a GPU refused: all that decides how many blocks there are, and how
// large.
inline PlannedTask refused_task(int device, Task task) {
  task.steps = 0;
  return planned_task(device, 0, task);
}

// One for all libraries of a wheel (gpu_state.cpp).
struct GpuState {
  std::atomic<int> default_free_sms = 0;  // what free_sms() is where the user says nothing
  std::mutex mutex;
  std::set<PlannedTask> refused;
  std::map<PlannedTask, Plan> plans;  // of "auto"
};
GpuState& gpu_state();

// Multiprocessors that the persistent engine, requested by name or not, leaves to other streams and
// processes: FASTLSTM_FREE_SMS, read once.
inline int free_sms() {
  static const std::optional<int> requested = parse_free_sms(std::getenv("FASTLSTM_FREE_SMS"));
  return requested.value_or(gpu_state().default_free_sms);
}

// "auto" makes no refused launch again, which would be refused too, after memory was marked and a
// GEMM was run for it.
inline bool is_refused(int device, const Task& task) {
  const std::lock_guard<std::mutex> lock(gpu_state().mutex);
  return gpu_state().refused.count(refused_task(device, task)) > 0;
}

}  // namespace fastlstm
