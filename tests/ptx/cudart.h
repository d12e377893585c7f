// What a driver of tests may ask of the runtime in cudart.cpp.
#pragma once
#include <set>
#include <string>

namespace ptx {

// Decodes every kernel; what is not implemented, once each.
std::set<std::string> faults_of_all_kernels();

}  // namespace ptx
