// The few words that the kernels use beyond plain C++. nvcc gets the real ones; with
// FASTLSTM_EMULATOR a C++ compiler gets their twins on the CPU (tests/simt/simt.h), so that the
// same .cu files run under a debugger, ASan or UBSan on a machine without a GPU.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "dtypes.h"

#if defined(FASTLSTM_EMULATOR)
#include "runtime.h"
#include "simt_mma.h"
#else
#include <cuda_runtime.h>

#include <cstdio>
#endif

namespace fastlstm {

// Sixteen bytes: 4 floats or 8 16-bit values, as one load brings them.
struct alignas(16) Bits128 {
  uint32_t word[4];
};

// An error that the caller gets, cleared in CUDA, which otherwise keeps the last one.
inline cudaError_t cleared(cudaError_t error) {
  if (error != cudaSuccess) cudaGetLastError();
  return error;
}

// launch, launch_cooperative: an ordinary launch, and one whose blocks all run at the same time or
// which is refused. The kernel's own signature decides the types of the arguments.
template <typename... P>
cudaError_t launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes,
                   cudaStream_t stream, std::common_type_t<P>... arguments) {
  void* pointers[] = {&arguments...};
  return cleared(cudaLaunchKernel(kernel, grid, block, pointers, shared_bytes, stream));
}

template <typename... P>
cudaError_t launch_cooperative(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes,
                               cudaStream_t stream, std::common_type_t<P>... arguments) {
  // The most that the device has, not what this launch needs: the attribute is the function's, so
  // another thread's smaller value would come between setting it and launching.
  int device = 0, most = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess)
    error = cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (error == cudaSuccess)
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most);
  void* pointers[] = {&arguments...};
  if (error == cudaSuccess)
    error = cudaLaunchCooperativeKernel(kernel, grid, block, pointers, shared_bytes, stream);
  return cleared(error);
}

// The functions that differ between a GPU and the emulator.
//
// Data that blocks exchange inside a kernel shows by itself that it is there: all bits of its
// memory are set when the kernel starts, every value is written once and never has all bits set,
// and a reader polls until it finds something else. No flag, no fence, one trip through L2. Stores
// are of words, and a vector load is one of words: the memory model promises nothing where a load
// meets stores of half its size. Such memory is never read through const __restrict__ or __ldg, for
// which the compiler may take a cache that does not notice other SMs' writes.
// give_up() ends the launch of a block that polls in vain; milliseconds() is the clock of its wait,
// of 32 bits that wrap around.
//
// in_register: the value itself, which the compiler keeps in a register. It does not know what
// lanes hand each other; otherwise it computes addresses and indices again at every use, from
// constants or special registers that take 30 clocks and more. All lanes must call it.
// shared_memory: of dynamic size; its address in a register.
//
// prefetch: into L2, of what a later step will load.
//
// mma_*: d += a b, one 16x8x16 (16-bit) or 16x8x8 (TF32) tile per warp; register layouts as in the
// PTX manual, "Matrix Fragments for mma".

// Older GPUs lack instructions of the persistent kernels, and the planner sends them none.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
constexpr bool kRunsPersistent = false;
#else
constexpr bool kRunsPersistent = true;
#endif

#if defined(FASTLSTM_EMULATOR)

template <typename T>
T in_register(T value) {
  return value;
}
inline unsigned char* shared_memory() { return simt::self().block->shared.get(); }

inline void store_exchanged(uint32_t* address, uint32_t word) {
  simt::exchange_store(address, word);
}
inline Bits128 load_exchanged(const Bits128* address) { return *address; }
inline void give_up() { throw simt::Fault("a block waits in vain"); }
using simt::milliseconds;
inline void await_store(const Bits128* address) { simt::await_store(address->word, 4); }
using std::min;
inline void prefetch(const void* address) { *static_cast<const volatile char*>(address); }
using simt::mma_bfloat16;
using simt::mma_float16;
using simt::mma_tf32;
using simt::shuffle;
using simt::shuffle_xor;
using simt::to_tf32;

#else

__device__ inline int in_register(int value) {
  asm volatile("" : "+r"(value));
  return __shfl_sync(0xffffffffu, value, threadIdx.x % 32);
}
// A pointer to global memory, as which the compiler then knows it. It may be null.
template <typename T>
__device__ inline T* in_register(T* pointer) {
  size_t address = __cvta_generic_to_global(pointer);
  asm volatile("" : "+l"(address));
  return static_cast<T*>(__cvta_global_to_generic(address));
}

__device__ inline unsigned char* shared_memory() {
  extern __shared__ __align__(16) unsigned char memory[];
  const auto address = static_cast<int>(__cvta_generic_to_shared(memory));
  return static_cast<unsigned char*>(
      __cvta_shared_to_generic(static_cast<unsigned>(in_register(address))));
}

// volatile, here and below: in the order of the source. A store that moved below the polling of
// others' values would be a deadlock.
__device__ inline void store_exchanged(uint32_t* address, uint32_t word) {
  asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(address), "r"(word) : "memory");
}

__device__ inline Bits128 load_exchanged(const Bits128* address) {
  Bits128 w;
  asm volatile("ld.relaxed.gpu.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(w.word[0]), "=r"(w.word[1]), "=r"(w.word[2]), "=r"(w.word[3])
               : "l"(address));
  return w;
}

// By the device's clock, in units of 2^20 nanoseconds.
__device__ inline uint32_t milliseconds() {
  uint64_t nanoseconds;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(nanoseconds));
  return static_cast<uint32_t>(nanoseconds >> 20);
}

// Says so and ends the launch. Without arguments printf needs no stack.
__device__ inline void give_up() {
  printf("fastlstm: a block waits in vain for the values of others\n");
  __trap();
  __builtin_unreachable();  // else ptxas keeps what comes after in registers
}

// A pause of the emulator, between two polls.
__device__ inline void await_store(const Bits128*) {}

__device__ inline void prefetch(const void* address) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(address));
}

template <typename T>
__device__ T shuffle_xor(T value, int mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}
__device__ inline uint32_t shuffle(uint32_t word, int lane) {
  return __shfl_sync(0xffffffffu, word, lane);
}

// Round to nearest, ties away from zero, to the 10 mantissa bits of TF32.
__device__ inline uint32_t to_tf32(float x) {
  uint32_t rounded;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(x));
  return rounded;
}

#define FASTLSTM_MMA(name, instruction)                                                      \
  __device__ inline void name(float (&d)[4], const Bits128& a, uint32_t b0, uint32_t b1) {   \
    asm(instruction " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"       \
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                     \
        : "r"(a.word[0]), "r"(a.word[1]), "r"(a.word[2]), "r"(a.word[3]), "r"(b0), "r"(b1)); \
  }
FASTLSTM_MMA(mma_bfloat16, "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32")
FASTLSTM_MMA(mma_float16, "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32")
FASTLSTM_MMA(mma_tf32, "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32")
#undef FASTLSTM_MMA

#endif

}  // namespace fastlstm
