// The function of cudart.cpp that is not part of CUDA's runtime interface.
#pragma once
#include <set>
#include <string>

namespace ptx {

// Decodes every kernel and returns a message for each feature of PTX that is not implemented.
std::set<std::string> faults_of_all_kernels();

}  // namespace ptx
