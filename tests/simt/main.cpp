// simt_tests --list prints the names of the cases; simt_tests NAME... runs them.
#include "harness.h"

int main(int argc, char** argv) {
  if (argc > 1) return testing::run_cases({argv + 1, argv + argc});
  std::puts("expected --list or names of cases");
  return 2;
}
