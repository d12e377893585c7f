// ptx_tests --list prints the names of the cases; ptx_tests [option...] NAME... runs them.
//   --seed-offset N     another order of warps
//   --random-lanes      lanes of a warp run apart wherever PTX lets them
//   --noise N           approximations are off by up to N units in the last place
//   --delays            relaxed stores reach memory late and in any order
//   --clocked           warps run in the order of modelled time, and accesses are counted
//   --no-races          no look for data races (faster)
//   --patience N        instructions of warps without progress that are a deadlock
//   --mutate KERNEL FROM TO N   in kernels whose name has KERNEL, match N (-1: all) of the regular
//                       expression FROM becomes TO
//   --coverage          per kernel, how many of its instructions ran
//   --never             the instructions that did not
//   --decode            decodes all kernels and prints what is not implemented
#include "cudart.h"
#include "harness.h"
#include "machine.h"

namespace {

void print_coverage(bool never) {
  std::map<std::string, const ptx::Kernel*> kernels;
  for (const ptx::Kernel* kernel : ptx::launched_kernels()) kernels[kernel->short_name()] = kernel;
  size_t all = 0, all_run = 0;
  for (const auto& [name, kernel] : kernels) {
    size_t run = 0;
    for (const ptx::Instruction& in : kernel->code) {
      run += in.executed > 0;
      if (never && !in.executed) std::printf("    %s\n", in.text.c_str());
    }
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
  bool coverage = false, never = false;
  std::vector<std::string> names;
  const std::map<std::string, bool*> flags = {
      {"--random-lanes", &o.random_lanes}, {"--delays", &o.delays},   {"--clocked", &o.clocked},
      {"--no-races", &o.ignore_races},     {"--coverage", &coverage}, {"--never", &never}};
  const std::map<std::string, int*> numbers = {
      {"--seed-offset", &o.seed_offset}, {"--noise", &o.noise}, {"--patience", &o.patience}};
  for (int i = 1; i < argc; ++i) {
    const std::string option = argv[i];
    if (option == "--decode") return decode();
    if (const auto flag = flags.find(option); flag != flags.end()) {
      *flag->second = true;
    } else if (const auto number = numbers.find(option); number != numbers.end() && i + 1 < argc) {
      *number->second = std::stoi(argv[++i]);
    } else if (option == "--mutate" && i + 4 < argc) {
      ptx::mutation() = {argv[i + 1], argv[i + 2], argv[i + 3], std::stoi(argv[i + 4]), 0};
      i += 4;
    } else {
      names.push_back(option);
    }
  }
  const int status = testing::run_cases(names);
  if (!ptx::mutation().from.empty())
    std::printf("mutated %d places, of which %d ran\n", ptx::mutation().places,
                ptx::mutated_places_that_ran());
  if (coverage || never) print_coverage(never);
  return status;
}
