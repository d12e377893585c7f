// simt_tests --list prints the names of the cases; simt_tests NAME... runs them.
#include "harness.h"

int main(int argc, char** argv) { return testing::run_cases({argv + 1, argv + argc}); }
