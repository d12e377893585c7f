// ptx_tests --list prints the names of the cases; ptx_tests [option...] NAME... runs them.
//   --seed-offset N     another order of warps
//   --random-lanes      lanes of a warp run apart wherever PTX lets them
//   --delays            relaxed stores reach memory late and in any order
//   --coverage          per kernel, how many of its instructions ran
//   --decode            decodes all kernels and prints what is not implemented
#include "cudart.h"
#include "harness.h"
#include "machine.h"

namespace {

void print_coverage() {
  std::map<std::string, const ptx::Kernel*> kernels;
  for (const ptx::Kernel* kernel : ptx::launched_kernels()) kernels[kernel->short_name()] = kernel;
  size_t all = 0, all_run = 0;
  for (const auto& [name, kernel] : kernels) {
    size_t run = 0;
    for (const ptx::Instruction& in : kernel->code) run += in.executed > 0;
    all += kernel->code.size(), all_run += run;
    std::printf("  %-44s %6zu of %6zu instructions ran\n", name.c_str(), run, kernel->code.size());
  }
  std::printf("%zu of %zu kernels, %zu of %zu instructions\n", kernels.size(),
              ptx::registered_kernels(), all_run, all);
}

int decode() {
  const auto faults = ptx::faults_of_all_kernels();
  for (const std::string& fault : faults) std::puts(fault.c_str());
  return !faults.empty();
}

}  // namespace

int main(int argc, char** argv) {
  ptx::Options& o = ptx::options();
  bool coverage = false;
  std::vector<std::string> names;
  const std::map<std::string, bool*> flags = {
      {"--random-lanes", &o.random_lanes}, {"--delays", &o.delays}, {"--coverage", &coverage}};
  for (int i = 1; i < argc; ++i) {
    const std::string option = argv[i];
    if (option == "--decode") return decode();
    if (const auto flag = flags.find(option); flag != flags.end()) {
      *flag->second = true;
    } else if (option == "--seed-offset" && i + 1 < argc) {
      o.seed_offset = std::stoi(argv[++i]);
    } else {
      names.push_back(option);
    }
  }
  const int status = testing::run_cases(names);
  if (coverage) print_coverage();
  return status;
}
