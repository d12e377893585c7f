// ptx_tests --list prints the names of the cases; ptx_tests [option...] NAME... runs these cases.
//   --seed-offset N     runs the warps in another order
//   --random-lanes      lets lanes of a warp run apart if PTX allows it
//   --delays            lets relaxed stores reach memory late and in any order
//   --decode            decodes all kernels and prints the features that are not implemented
#include "harness.h"
#include "machine.h"

int main(int argc, char** argv) {
  ptx::Options& o = ptx::options();
  std::vector<std::string> names;
  for (int i = 1; i < argc; ++i) {
    const std::string option = argv[i];
    if (option == "--decode") return ptx::decode_all_kernels();
    if (option == "--random-lanes")
      o.random_lanes = true;
    else if (option == "--delays")
      o.delays = true;
    else if (option == "--seed-offset" && i + 1 < argc)
      o.seed_offset = std::stoi(argv[++i]);
    else
      names.push_back(option);
  }
  return testing::run_cases(names);
}
