// What a user asks of the CUDA engines: one of them by name, and multiprocessors for other streams.
#pragma once
#include <atomic>
#include <climits>
#include <cstdio>
#include <cstdlib>
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
  Division division;
  int parsed = 0;
  const int numbers = std::sscanf(name.c_str(), "persistent:%4dx%4dx%8d%n", &division.units,
                                  &division.row_tile, &division.row_groups, &parsed);
  if (numbers != 3 || parsed != static_cast<int>(name.size()) || division.units < 1 ||
      division.row_tile < 1 || division.row_groups < 1)
    return std::nullopt;
  return EngineRequest{EngineRequest::kPersistent, division};
}

// Nothing where the user says nothing.
inline std::optional<int> parse_free_sms(const char* text) {
  if (!text || !*text) return std::nullopt;
  char* end = nullptr;
  const long count = std::strtol(text, &end, 10);
  if (*end || end == text || count < 0 || count > INT_MAX)
    throw std::invalid_argument(
        std::string("FASTLSTM_FREE_SMS: expected a number of multiprocessors, 0 or more, got \"") +
        text + "\"");
  return static_cast<int>(count);
}

// What free_sms() is where the user says nothing; Python sets it.
inline std::atomic<int> default_free_sms = 0;

// Multiprocessors that the persistent engine, requested by name or not, leaves to other streams and
// processes: FASTLSTM_FREE_SMS, read once.
inline int free_sms() {
  static const std::optional<int> requested = parse_free_sms(std::getenv("FASTLSTM_FREE_SMS"));
  return requested.value_or(default_free_sms);
}

}  // namespace fastlstm
