// What a user asks of the engines of a GPU: one of them by name, and multiprocessors for others.
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
  bool persistent;
  Division division;  // of the persistent engine
};

// "auto" and "stepwise", "persistent", or "persistent:UNITSxROW_TILExROW_GROUPS"; nothing for
// others.
inline std::optional<EngineRequest> parse_engine(std::string_view name) {
  if (name == "auto" || name == "stepwise") return EngineRequest{false, {}};
  if (name == "persistent") return EngineRequest{true, {}};
  int numbers[3];
  if (!parse_division(name, "persistent", numbers)) return std::nullopt;
  return EngineRequest{true, {numbers[0], numbers[1], numbers[2]}};
}

inline int parse_free_sms(const char* text) {
  if (!text || !*text) return 0;
  int count = 0;
  const char* const end = text + std::strlen(text);
  const auto [next, error] = std::from_chars(text, end, count);
  if (error != std::errc() || next != end || count < 0)
    throw std::invalid_argument(
        std::string("FASTLSTM_FREE_SMS: expected a number of multiprocessors, 0 or more, got \"") +
        text + "\"");
  return count;
}

// Multiprocessors that the persistent engine leaves to other streams and processes:
// FASTLSTM_FREE_SMS, read once.
inline int free_sms() {
  static const int count = parse_free_sms(std::getenv("FASTLSTM_FREE_SMS"));
  return count;
}

}  // namespace fastlstm
