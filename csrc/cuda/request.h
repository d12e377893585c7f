// What a user asks of the CUDA engines, one of them by name and multiprocessors for other streams,
// and which GPUs refused a launch.
#pragma once
#include <array>
#include <atomic>
#include <charconv>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>

#include "plan.h"

namespace fastlstm {

struct EngineRequest {
  enum Engine { kAuto, kStepwise, kPersistent } engine;
  Division division;  // of the persistent engine
};

// "auto", "stepwise", "persistent" or "persistent:UNITSxROW_TILExROW_GROUPS"; nothing for others.
inline std::optional<EngineRequest> parse_engine(const std::string& name) {
  if (name == "auto") return EngineRequest{EngineRequest::kAuto, {}};
  if (name == "stepwise") return EngineRequest{EngineRequest::kStepwise, {}};
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

// One for all libraries of a wheel (gpu_state.cpp).
struct GpuState {
  std::atomic<int> default_free_sms = 0;  // what free_sms() is where the user says nothing
  // By device: whether it refused a persistent launch. "auto" makes none there again, which would
  // be refused too, after memory was marked and a GEMM was run for it.
  std::array<std::atomic<bool>, 128> refused = {};
  std::mutex mutex;                               // of the plans
  std::map<std::array<int64_t, 10>, Plan> plans;  // of "auto", by known_plan
};
GpuState& gpu_state();

// Multiprocessors that the persistent engine, requested by name or not, leaves to other streams and
// processes: FASTLSTM_FREE_SMS, read once.
inline int free_sms() {
  static const std::optional<int> requested = parse_free_sms(std::getenv("FASTLSTM_FREE_SMS"));
  return requested.value_or(gpu_state().default_free_sms);
}

}  // namespace fastlstm
