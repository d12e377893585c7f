// simt_tests --list prints the names of the cases; simt_tests NAME... runs them.
#include <cstdio>
#include <cstring>

#include "harness.h"

int main(int argc, char** argv) {
  if (argc == 2 && !std::strcmp(argv[1], "--list")) {
    for (const auto& [name, body] : testing::cases()) std::puts(name.c_str());
    return 0;
  }
  int failures = 0;
  for (int i = 1; i < argc; ++i) {
    const auto found = testing::cases().find(argv[i]);
    if (found == testing::cases().end()) {
      std::printf("no case named %s\n", argv[i]);
      return 2;
    }
    try {
      found->second();
      std::printf("ok %s\n", argv[i]);
    } catch (const std::exception& error) {
      std::printf("FAILED %s: %s\n", argv[i], error.what());
      ++failures;
    }
    std::fflush(stdout);
  }
  return failures != 0;
}
