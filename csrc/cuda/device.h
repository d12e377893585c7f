// The functions that the kernels use beyond plain C++: instructions of the GPU, or with
// FASTLSTM_EMULATOR functions of the same names for the CPU (tests/simt/simt.h), so that the same
// .cu files run under a debugger, ASan or UBSan without a GPU.
#pragma once
#include <algorithm>
#include <cstdint>
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

// Sixteen bytes, the size of the widest load: 4 floats or 8 16-bit values.
struct alignas(16) Bits128 {
  uint32_t word[4];
};
struct alignas(8) Bits64 {
  uint32_t low, high;
};

// Returns `error`. Unless it is success, clears it in CUDA, which would report it again later.
inline cudaError_t cleared(cudaError_t error) {
  if (error != cudaSuccess) cudaGetLastError();
  return error;
}

// Launches a kernel. The parameters of the kernel decide the types of the arguments.
template <typename... P>
cudaError_t launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes,
                   cudaStream_t stream, std::common_type_t<P>... arguments) {
  static_assert((sizeof(P) + ... + 0) <= 4096, "more parameters than CUDA allows on every GPU");
  void* pointers[] = {&arguments...};
  return cleared(cudaLaunchKernel(kernel, grid, block, pointers, shared_bytes, stream));
}

// Launches a kernel whose blocks all run at the same time, or returns an error if they do not fit.
template <typename... P>
cudaError_t launch_cooperative(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes,
                               cudaStream_t stream, std::common_type_t<P>... arguments) {
  // Allows the kernel all shared memory of the device, not only `shared_bytes`: the limit holds for
  // the launches of all host threads, and another thread may launch this kernel with more.
  int device = 0, most_bytes = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess)
    error = cudaDeviceGetAttribute(&most_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (error == cudaSuccess)
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most_bytes);
  void* pointers[] = {&arguments...};
  if (error == cudaSuccess)
    error = cudaLaunchCooperativeKernel(kernel, grid, block, pointers, shared_bytes, stream);
  return cleared(error);
}

// store_exchanged and load_exchanged access values that blocks exchange while the kernel runs, by
// the rules of docs/cuda.md, "The exchange". Both access words of 32 bits: the memory model
// promises nothing if a load of 32 bits meets two stores of 16. No code reads such memory through
// const __restrict__ or __ldg, which may use a cache that does not see the stores of other SMs.
//
// mma_* compute d += a b for a tile of 16x8x16 (16-bit) or 16x8x8 (TF32) per warp. The PTX manual
// shows which lane has which element, under "Matrix Fragments for mma".

#if defined(FASTLSTM_EMULATOR)

template <typename T>
T in_register(T value) {
  return value;
}
inline unsigned char* shared_memory() { return simt::self().block->shared.get(); }

inline void store_exchanged(uint32_t* address, uint32_t word) {
  simt::exchange_store(address, word);
}
inline Bits128 load_exchanged(const Bits128* address) {
  if (reinterpret_cast<uintptr_t>(address) % 16 != 0) throw simt::Fault("a misaligned address");
  return *address;
}
inline void give_up() { throw simt::Fault("a block waits in vain"); }
// Lets the emulator run other threads between two polls.
inline void await_store(const Bits128* address) { simt::await_store(address->word, 4); }
inline void prefetch(const void* address) { *static_cast<const volatile char*>(address); }
using simt::milliseconds, simt::shuffle, simt::shuffle_xor, simt::to_tf32, std::max, std::min;
using simt::mma_bfloat16, simt::mma_float16, simt::mma_tf32;

#else

// in_register keeps a value in a register. Otherwise the compiler computes the value again at each
// use, from special registers or constants, which takes 30 clocks and more. The compiler cannot
// recompute the result of a shuffle. All lanes of the warp must call the shuffle.
__device__ inline int in_register(int value) {
  asm volatile("" : "+r"(value));
  return __shfl_sync(0xffffffffu, value, threadIdx.x % 32);
}
// Keeps a pointer in a register, and tells the compiler that it points to global memory or is null.
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

// volatile keeps the order of the source, here and below. If a store moved below a loop that polls,
// two blocks could wait for each other forever.
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

// A clock that wraps around. Its unit is 2^20 nanoseconds.
__device__ inline uint32_t milliseconds() {
  uint64_t nanoseconds;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(nanoseconds));
  return static_cast<uint32_t>(nanoseconds >> 20);
}

// A printf without arguments needs no stack.
__device__ inline void give_up() {
  printf("fastlstm: a block waits in vain for the values of others\n");
  __trap();
  __builtin_unreachable();  // saves registers: no value is needed after this line
}

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

// Rounds to the 10 mantissa bits of TF32, to nearest, ties away from zero.
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
