#include "counters.h"

namespace counters {
namespace {

// Different values among the first n.
int count_different(uintptr_t* values, int n) {
  std::sort(values, values + n);
  return static_cast<int>(std::unique(values, values + n) - values);
}

int bank_conflicts(const uintptr_t (&address)[32], uint32_t lanes, int bytes) {
  const int phase_lanes = bytes <= 4 ? 32 : bytes == 8 ? 16 : 8;
  int conflicts = 0;
  for (int first = 0; first < 32; first += phase_lanes) {
    uintptr_t words[32];
    int n = 0;
    for (int lane = first; lane < first + phase_lanes; ++lane)
      if (lanes >> lane & 1)
        for (int byte = 0; byte < bytes; byte += 4) words[n++] = (address[lane] + byte) / 4;
    n = count_different(words, n);
    int of_bank[32] = {}, most = 1;
    for (int i = 0; i < n; ++i) most = std::max(most, ++of_bank[words[i] % 32]);
    conflicts += most - 1;
  }
  return conflicts;
}

int sectors(const uintptr_t (&address)[32], uint32_t lanes, int bytes) {
  uintptr_t touched[64];
  int n = 0;
  for (int lane = 0; lane < 32; ++lane) {
    if (!(lanes >> lane & 1)) continue;
    touched[n++] = address[lane] / 32;
    touched[n++] = (address[lane] + bytes - 1) / 32;
  }
  return count_different(touched, n);
}

}  // namespace

void Counters::access(const void* address, int bytes, Kind kind, const void* place) {
  simt::Fiber& lane = simt::self();
  const auto at = reinterpret_cast<uintptr_t>(address);
  if (at - reinterpret_cast<uintptr_t>(lane.stack) < simt::kStackBytes) return;
  const uintptr_t in_shared = at - reinterpret_cast<uintptr_t>(lane.block->shared.get());
  const bool shared = in_shared < lane.block->shared_bytes;
  const uintptr_t position = shared ? in_shared : at;
  auto& ranges = shared ? shared_ : global_;
  const auto range = std::find_if(ranges.begin(), ranges.end(),
                                  [&](const Range& r) { return position - r.from < r.bytes; });
  if (range == ranges.end()) return;

  if (simt::clock()) lane.now += simt::clock()->request;
  WarpRequests& warp = warps_[lane.warp];
  if (warp.barriers != lane.barriers) close(warp);  // all lanes have passed the barrier
  warp.barriers = lane.barriers;
  Place& here = warp.places[place];
  const unsigned index = here.count[lane.lane]++;
  if (index == here.requests.size())
    here.requests.push_back({&range->totals[kind], shared, bytes, 0, {}});
  Request& request = here.requests[index];
  request.lanes |= 1u << lane.lane;
  request.address[lane.lane] = shared ? position : position - range->from;
}

void Counters::close(WarpRequests& warp) {
  for (const auto& [place, here] : warp.places) {
    for (const Request& r : here.requests) {
      ++r.total->requests;
      if (r.shared)
        r.total->conflicts += bank_conflicts(r.address, r.lanes, r.bytes);
      else
        r.total->sectors += sectors(r.address, r.lanes, r.bytes);
    }
  }
  warp.places.clear();
}

void Counters::finish() {
  for (auto& [warp, requests] : warps_) close(requests);
  warps_.clear();
}

Total Counters::total(const std::string& name, Kind kind) const {
  for (const auto* ranges : {&global_, &shared_})
    for (const Range& range : *ranges)
      if (range.name == name) return range.totals[kind];
  throw std::out_of_range("nobody watches " + name);
}

}  // namespace counters
