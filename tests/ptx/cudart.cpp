// Replaces NVIDIA's CUDA runtime for the project's object files. It reads the PTX that nvcc embeds
// in them. A launch runs in the interpreter to its end. Device memory is host memory.
#include <cuda_runtime_api.h>

#include <cstdio>
#include <cstring>
#include <map>
#include <memory>
#include <set>
#include <vector>

#include "machine.h"

namespace ptx {
namespace {

// --- the container in which nvcc embeds code ---

// The argument of __cudaRegisterFatBinary.
struct Wrapper {
  uint32_t magic, version;
  const unsigned char* data;
  void* unused;
};
constexpr uint32_t kWrapperMagic = 0x466243b1, kContainerMagic = 0xba55ed50;
constexpr uint16_t kPtxEntry = 1;

// Returns the PTX texts in a container. The fields of a container, with their bits: magic (32),
// version (16), size of the header (16), size of all entries (64); then the entries. The fields of
// an entry: kind (16), version (16), size of the header (32), size of the data (64), size if
// compressed (32), ...
std::vector<std::string> embedded_ptx(const Wrapper& wrapper) {
  std::vector<std::string> texts;
  const unsigned char* at = wrapper.data;
  if (wrapper.magic != kWrapperMagic || value_at<uint32_t>(at) != kContainerMagic)
    throw Fault("an unknown container of device code");
  const unsigned char* const end = at + value_at<uint16_t>(at + 6) + value_at<uint64_t>(at + 8);
  for (at += value_at<uint16_t>(at + 6); at < end;) {
    const auto kind = value_at<uint16_t>(at);
    const auto header = value_at<uint32_t>(at + 4);
    const auto size = value_at<uint64_t>(at + 8);
    if (kind == kPtxEntry) {
      if (value_at<uint32_t>(at + 16) != 0) throw Fault("compressed PTX: give nvcc --no-compress");
      texts.emplace_back(reinterpret_cast<const char*>(at + header));
    }
    at += header + size;
  }
  return texts;
}

struct Function {
  std::string text;                 // the PTX of the kernel
  std::unique_ptr<Kernel> kernel;   // decoded at the first launch
  size_t shared_limit = 48 * 1024;  // the most dynamic shared memory of a launch, in bytes
};

struct Runtime {
  std::map<std::string, std::string> texts;  // the PTX of all kernels, by name
  Variables variables;
  std::map<const void*, Function> functions;  // by the address of the host function
  cudaError_t last_error = cudaSuccess;
};
Runtime& runtime() {
  static Runtime* const r = new Runtime;  // in use before main and after main, so never destroyed
  return *r;
}

// Records an error as the last error, and returns the error.
cudaError_t recorded(cudaError_t error) {
  if (error != cudaSuccess) runtime().last_error = error;
  return error;
}

Kernel& kernel_of(Function& f) {
  if (f.kernel) return *f.kernel;
  const RecordingPause pause;
  f.kernel = parse_kernel(f.text, runtime().variables);
  return *f.kernel;
}

cudaError_t launch(const void* host, dim3 grid, dim3 block, void** arguments, size_t shared_bytes,
                   bool cooperative) {
  const auto found = runtime().functions.find(host);
  if (found == runtime().functions.end()) return recorded(cudaErrorInvalidDeviceFunction);
  Function& f = found->second;
  const unsigned threads = block.x * block.y * block.z;
  if (threads == 0 || threads > 1024 || grid.x == 0 || grid.y == 0 || grid.z == 0 ||
      grid.y > 65535 || grid.z > 65535)
    return recorded(cudaErrorInvalidConfiguration);
  if (shared_bytes > f.shared_limit) return recorded(cudaErrorInvalidValue);
  const Kernel& kernel = kernel_of(f);
  Launch launch{&kernel,    {grid.x, grid.y, grid.z}, {block.x, block.y, block.z}, {}, shared_bytes,
                cooperative};
  launch.parameters.resize(kernel.parameter_bytes);
  for (size_t i = 0; i < kernel.parameters.size(); ++i)
    std::memcpy(&launch.parameters[kernel.parameters[i].offset], arguments[i],
                kernel.parameters[i].bytes);
  run(launch);
  return cudaSuccess;
}

}  // namespace

int decode_all_kernels() {
  std::set<std::string> faults;
  for (const auto& [name, text] : runtime().texts) {
    try {
      parse_kernel(text, runtime().variables);
    } catch (const Fault& fault) {
      faults.insert(fault.what());
    }
  }
  for (const std::string& fault : faults) std::puts(fault.c_str());
  return !faults.empty();
}

}  // namespace ptx

// --- the functions by which nvcc's object files register kernels ---

extern "C" {

void** __cudaRegisterFatBinary(void* data) {
  for (const std::string& text : ptx::embedded_ptx(*static_cast<const ptx::Wrapper*>(data)))
    for (auto& [name, kernel] : ptx::split_module(text, ptx::runtime().variables))
      ptx::runtime().texts[name] = kernel;
  static void* handle = nullptr;
  return &handle;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
char __cudaInitModule(void**) { return 0; }

void __cudaRegisterFunction(void**, const char* host, char*, const char* name, int, void*, void*,
                            void*, void*, int*) {
  ptx::runtime().functions[host].text = ptx::runtime().texts.at(name);
}

// The functions for <<<>>>. nvcc's stubs call them, but the project does not use <<<>>>.
unsigned __cudaPushCallConfiguration(dim3, dim3, size_t, void*) { return 1; }
cudaError_t __cudaPopCallConfiguration(dim3*, dim3*, size_t*, void*) {
  return cudaErrorNotSupported;
}
cudaError_t __cudaGetKernel(cudaKernel_t*, const void*) { return cudaErrorNotSupported; }
cudaError_t __cudaLaunchKernel(cudaKernel_t, dim3, dim3, void**, size_t, cudaStream_t) {
  return cudaErrorNotSupported;
}

// --- the functions of the CUDA runtime that the host code of the kernels calls ---

cudaError_t cudaLaunchKernel(const void* function, dim3 grid, dim3 block, void** arguments,
                             size_t shared_bytes, cudaStream_t) {
  return ptx::launch(function, grid, block, arguments, shared_bytes, false);
}
cudaError_t cudaLaunchCooperativeKernel(const void* function, dim3 grid, dim3 block,
                                        void** arguments, size_t shared_bytes, cudaStream_t) {
  return ptx::launch(function, grid, block, arguments, shared_bytes, true);
}
cudaError_t cudaFuncSetAttribute(const void* function, cudaFuncAttribute attribute, int value) {
  const auto found = ptx::runtime().functions.find(function);
  if (found == ptx::runtime().functions.end()) return ptx::recorded(cudaErrorInvalidDeviceFunction);
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize || value < 0 ||
      value > ptx::options().shared_bytes)
    return ptx::recorded(cudaErrorInvalidValue);
  found->second.shared_limit = value;
  return cudaSuccess;
}
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes*, const void*) {
  return ptx::recorded(cudaErrorNotSupported);  // no test case calls this function
}
cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  if (attribute != cudaDevAttrMaxSharedMemoryPerBlockOptin)
    return ptx::recorded(cudaErrorInvalidValue);
  *value = ptx::options().shared_bytes;
  return cudaSuccess;
}
cudaError_t cudaGetLastError() {
  const cudaError_t error = ptx::runtime().last_error;
  ptx::runtime().last_error = cudaSuccess;
  return error;
}
}
