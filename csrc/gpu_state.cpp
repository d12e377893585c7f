// What the libraries of a wheel share about GPUs. It knows neither torch nor CUDA.
#include <array>
#include <atomic>
#include <mutex>
#include <set>

#include "cuda/request.h"

namespace fastlstm {
namespace {

std::atomic<int> default_free_sms = 0;

// Of the task all that decides how many blocks there are, and how large.
using Key = std::array<int64_t, 7>;
Key key(int device, const Task& task) {
  return {device,          task.hidden_size, task.batch,   task.directions,
          int(task.dtype), task.allow_tf32,  task.backward};
}
std::mutex mutex;
std::set<Key> refused;

}  // namespace

int free_sms() {
  static const std::optional<int> requested = parse_free_sms(std::getenv("FASTLSTM_FREE_SMS"));
  return requested.value_or(default_free_sms);
}

void set_default_free_sms(int count) { default_free_sms = count; }

bool is_refused(int device, const Task& task) {
  const std::lock_guard<std::mutex> lock(mutex);
  return refused.count(key(device, task)) > 0;
}

bool remember_refusal(int device, const Task& task) {
  const std::lock_guard<std::mutex> lock(mutex);
  return refused.insert(key(device, task)).second;
}

void forget_refusals() {
  const std::lock_guard<std::mutex> lock(mutex);
  refused.clear();
}

}  // namespace fastlstm
