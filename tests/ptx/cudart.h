// What a driver of tests may ask of the runtime in cudart.cpp.
#pragma once
#include <set>
#include <string>
#include <vector>

#include "kernel.h"

namespace ptx {

// A change of the PTX before it is decoded, to see whether the tests notice.
struct Mutation {
  std::string kernel;   // part of the names of the kernels that get it
  std::string from;     // regular expression; "" for none
  std::string to;       // with $1, $2 ... for groups
  int occurrence = -1;  // which match in a kernel; -1: every one
  int places = 0;       // changed so far
};
Mutation& mutation();
int mutated_places_that_ran();

std::vector<const Kernel*> launched_kernels();
size_t registered_kernels();
// Decodes every kernel; what is not implemented, once each.
std::set<std::string> faults_of_all_kernels();

}  // namespace ptx
