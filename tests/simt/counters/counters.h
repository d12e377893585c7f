// What a kernel asks of memory, counted as a GPU would serve it. The kernels are compiled for this
// with -fsanitize=thread, which calls a function before every access (accesses.cpp); no sanitizer
// is linked.
//
// What the lanes of a warp access at one place of the program, between the same two barriers, is
// one request. Shared memory serves a request in phases, of 32 lanes up to 4 bytes wide, 16 lanes
// of 8 bytes or 8 lanes of 16 bytes, and in a phase every bank gives one word at a time. Global
// memory serves it in sectors of 32 bytes.
#pragma once
#include <algorithm>
#include <cstdint>
#include <string>
#include <unordered_map>
#include <vector>

#include "simt.h"

namespace counters {

enum Kind { kLoad, kStore, kPrefetch };

struct Total {
  int64_t requests = 0;
  int64_t conflicts = 0;  // times that a phase of shared memory takes longer than without
  int64_t sectors = 0;    // of global memory

  double conflicts_each() const { return requests ? double(conflicts) / double(requests) : 0; }
  double sectors_each() const { return requests ? double(sectors) / double(requests) : 0; }
};

class Counters {
 public:
  // Counts accesses to these bytes, which nobody else names: of global memory, whose first sector
  // starts there, or from `offset` on of every block's shared memory.
  template <typename T>
  void watch_global(const std::string& name, const std::vector<T>& values) {
    global_.push_back(
        {name, reinterpret_cast<uintptr_t>(values.data()), values.size() * sizeof(T)});
  }
  void watch_shared(const std::string& name, size_t offset, size_t bytes) {
    shared_.push_back({name, offset, bytes});
  }

  // An access of the lane that runs; `place` is the program's.
  void access(const void* address, int bytes, Kind kind, const void* place);

  // To be called after a launch, before the totals are read.
  void finish();

  Total total(const std::string& name, Kind kind) const;

  // Those in use; nullptr: nothing is counted.
  static Counters*& current() {
    static Counters* counters = nullptr;
    return counters;
  }

 private:
  struct Range {
    std::string name;
    uintptr_t from;
    size_t bytes;
    Total totals[3] = {};  // by kind
  };
  struct Request {
    Total* total;
    bool shared;
    int bytes;  // of a lane
    uint32_t lanes;
    uintptr_t address[32];
  };
  struct Place {
    std::vector<Request> requests;
    unsigned count[32] = {};  // how many times each lane was there
  };
  struct WarpRequests {
    unsigned barriers = 0;
    std::unordered_map<const void*, Place> places;
  };

  static void close(WarpRequests& warp);

  std::vector<Range> global_, shared_;
  std::unordered_map<const simt::Warp*, WarpRequests> warps_;
};

}  // namespace counters
