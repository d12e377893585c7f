// native_tests runs every case, or those whose names are given; --short leaves out the deep ones;
// --list prints the names. A case for which the GPU has no room is skipped and said so.
#include <string>
#include <vector>

#include "harness.h"
#include "runtime.h"

namespace {

// Cases of what only an emulator has.
bool is_possible(const std::string& name, bool only_short) {
  if (name == "persistent/refused where the blocks do not fit") return false;
  return !only_short || (name.rfind("deep/", 0) != 0 && name.find("random") == std::string::npos);
}

}  // namespace

int main(int argc, char** argv) {
  std::vector<std::string> names(argv + 1, argv + argc);
  const bool lists = names == std::vector<std::string>{"--list"};
  const bool only_short = names == std::vector<std::string>{"--short"};
  if (names.empty() || lists || only_short) {
    names.clear();
    for (const auto& [name, body] : testing::cases())
      if (is_possible(name, only_short)) names.push_back(name);
  }
  int status = 0, skipped = 0;
  for (const std::string& name : names) {
    if (lists) {
      std::puts(name.c_str());
      continue;
    }
    native::had_no_room() = false;
    const int failed = testing::run_cases({name});
    if (failed && native::had_no_room()) {
      std::printf("skipped %s: the GPU has no room\n", name.c_str());
      ++skipped;
    } else {
      status |= failed;
    }
    if (native::failure() != cudaSuccess) {  // no launch after it succeeds
      std::printf("ended: %s\n", cudaGetErrorString(native::failure()));
      return 1;
    }
  }
  if (!lists) std::printf("%zu cases, %d skipped\n", names.size(), skipped);
  return status;
}
