// What a user asks of the CUDA engines, one of them by name and multiprocessors for other streams,
// and what a GPU refused.
#pragma once
#include <charconv>
#include <cstdlib>
#include <cstring>
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

// Multiprocessors that the persistent engine, requested by name or not, leaves to other streams and
// processes: FASTLSTM_FREE_SMS, read once, or else what Python has set. This and what follows is
// kept in gpu_state.cpp, once for all libraries of a wheel.
int free_sms();
void set_default_free_sms(int count);

// Calls whose persistent launch a GPU refused: "auto" makes no such launch again, which would be
// refused too, after memory was marked and a GEMM was run for it.
bool is_refused(int device, const Task& task);
bool remember_refusal(int device, const Task& task);  // false if it was known
void forget_refusals();                               // for tests

}  // namespace fastlstm
