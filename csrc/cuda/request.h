// What a user asks of the CUDA engines, one of them by name and multiprocessors for other streams,
// and what a GPU refused.
#pragma once
#include <array>
#include <atomic>
#include <charconv>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <optional>
#include <set>
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

// What free_sms() is where the user says nothing; Python sets it.
inline std::atomic<int> default_free_sms = 0;

// Multiprocessors that the persistent engine, requested by name or not, leaves to other streams and
// processes: FASTLSTM_FREE_SMS, read once.
inline int free_sms() {
  static const std::optional<int> requested = parse_free_sms(std::getenv("FASTLSTM_FREE_SMS"));
  return requested.value_or(default_free_sms);
}

// Calls whose persistent launch a GPU refused: "auto" makes no such launch again, which would be
// refused too, after memory was marked and a GEMM was run for it.
class Refusals {
 public:
  static bool contain(int device, const Task& task) {
    const std::lock_guard<std::mutex> lock(mutex_);
    return calls_.count(key(device, task)) > 0;
  }
  // False if it was known.
  static bool add(int device, const Task& task) {
    const std::lock_guard<std::mutex> lock(mutex_);
    return calls_.insert(key(device, task)).second;
  }
  static void forget() {  // for tests
    const std::lock_guard<std::mutex> lock(mutex_);
    calls_.clear();
  }

 private:
  // Of the task all that decides how many blocks there are, and how large.
  using Key = std::array<int64_t, 7>;
  static Key key(int device, const Task& task) {
    return {device,          task.hidden_size, task.batch,   task.directions,
            int(task.dtype), task.allow_tf32,  task.backward};
  }

  static inline std::mutex mutex_;
  static inline std::set<Key> calls_;
};

}  // namespace fastlstm
