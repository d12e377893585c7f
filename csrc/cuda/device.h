// The few words that the kernels use beyond plain C++. nvcc gets the real ones; with
// FASTLSTM_EMULATOR a C++ compiler gets their twins on the CPU (tests/simt/simt.h), so that the
// same .cu files run under a debugger, ASan or UBSan on a machine without a GPU.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>

#include "dtypes.h"
#include "switches.h"

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

// Lets the kernel's own signature decide the types of the arguments.
template <typename P>
struct Parameter {
  using type = P;
};

// What the arguments of a launch take. CUDA allows 4096 bytes on every GPU.
template <typename... P>
constexpr size_t parameter_bytes() {
  size_t bytes = 0;
  ((bytes = (bytes + alignof(P) - 1) / alignof(P) * alignof(P) + sizeof(P)), ...);
  return bytes;
}
constexpr size_t kMaxParameterBytes = 4096;

// An error that the caller gets, cleared in CUDA, which otherwise keeps the last one.
inline cudaError_t cleared(cudaError_t error) {
  if (error != cudaSuccess) cudaGetLastError();
  return error;
}

// launch, launch_cooperative: an ordinary launch, and one whose blocks all run at the same time or
// which is refused.
template <typename... P>
cudaError_t launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes,
                   cudaStream_t stream, typename Parameter<P>::type... arguments) {
  static_assert(parameter_bytes<P...>() <= kMaxParameterBytes, "too many parameters");
  void* pointers[] = {&arguments...};
  return cleared(cudaLaunchKernel(kernel, grid, block, pointers, shared_bytes, stream));
}

template <typename... P>
cudaError_t launch_cooperative(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes,
                               cudaStream_t stream, typename Parameter<P>::type... arguments) {
  static_assert(parameter_bytes<P...>() <= kMaxParameterBytes, "too many parameters");
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

// What differs between a GPU and the emulator.
//
// Data that blocks exchange inside a kernel shows by itself that it is there: all bits of its
// memory are set when the kernel starts, every value is written once and never has all bits set,
// and a reader polls until it finds something else. No flag, no fence, one trip through L2. Stores
// and loads are of the same size where they may meet (32 bits, 16 where rows are not aligned): the
// memory model promises nothing to others. Such memory is never read through const __restrict__ or
// __ldg, for which the compiler may take a cache that does not notice other SMs' writes.
// before_polling_again(address, count, polls, step) comes between two polls of `count` values.
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

#if defined(FASTLSTM_EMULATOR)

template <typename T>
T in_register(T value) {
  return value;
}
inline unsigned char* shared_memory() { return simt::self().block->shared.get(); }

template <typename Bits>
void store_exchanged(Bits* address, Bits bits) {
  simt::exchange_store(address, bits);
}
template <typename T>
T load_exchanged(const T* address) {
  return *address;
}
template <typename T>
void before_polling_again(const T* address, int count, long long&, int /*step*/) {
  simt::await_store(address, count);
}
using std::min;
inline void prefetch(const void* address) { *static_cast<const volatile char*>(address); }
using simt::mma_bfloat16;
using simt::mma_float16;
using simt::mma_tf32;
using simt::shuffle_xor;
using simt::to_tf32;

#else

__device__ inline int in_register(int value) {
  if constexpr (kHoisting) {
    asm volatile("" : "+r"(value));
    value = __shfl_sync(0xffffffffu, value, threadIdx.x % 32);
  }
  return value;
}
template <typename T>
__device__ inline T* in_register(T* global) {
  if constexpr (kHoisting) asm volatile("" : "+l"(global));
  __builtin_assume(__isGlobal(global));
  return global;
}

__device__ inline unsigned char* shared_memory() {
  extern __shared__ __align__(16) unsigned char memory[];
  const auto address = static_cast<int>(__cvta_generic_to_shared(memory));
  void* const pointer = __cvta_shared_to_generic(static_cast<unsigned>(in_register(address)));
  __builtin_assume(__isShared(pointer));
  return static_cast<unsigned char*>(pointer);
}

// volatile, here and below: in the order of the source. A store that moved below the polling of
// others' values would be a deadlock.
template <typename Bits>
__device__ inline void store_exchanged(Bits* address, Bits bits) {
  if constexpr (sizeof(Bits) == 4)
    asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(address), "r"(bits) : "memory");
  else
    asm volatile("st.relaxed.gpu.global.u16 [%0], %1;" ::"l"(address), "h"(bits) : "memory");
}

template <typename T>
__device__ inline T load_exchanged(const T* address) {
  T value;
  if constexpr (sizeof(T) == 16) {
    uint32_t w[4];
    asm volatile("ld.relaxed.gpu.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(w[0]), "=r"(w[1]), "=r"(w[2]), "=r"(w[3])
                 : "l"(address));
    std::memcpy(&value, w, sizeof value);
  } else if constexpr (sizeof(T) == 4) {
    uint32_t word;
    asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(word) : "l"(address));
    std::memcpy(&value, &word, sizeof value);
  } else {
    uint16_t half;
    asm volatile("ld.relaxed.gpu.global.u16 %0, [%1];" : "=h"(half) : "l"(address));
    std::memcpy(&value, &half, sizeof value);
  }
  return value;
}

template <typename T>
__device__ inline void before_polling_again(const T*, int, [[maybe_unused]] long long& polls,
                                            [[maybe_unused]] int step) {
#if defined(FASTLSTM_SPIN_LIMIT)
  if (++polls > FASTLSTM_SPIN_LIMIT) {
    printf("fastlstm: block %u waits for the values of step %d\n", blockIdx.x, step);
    __trap();
  }
#endif
}

__device__ inline void prefetch(const void* address) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(address));
}

__device__ inline uint32_t shuffle_xor(uint32_t word, int mask) {
  return __shfl_xor_sync(0xffffffffu, word, mask);
}

// Older GPUs lack the instructions below, and the planner sends them nothing that needs them.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#define FASTLSTM_SM80(statement) __trap()
#else
#define FASTLSTM_SM80(statement) statement
#endif

// Round to nearest, ties away from zero, to the 10 mantissa bits of TF32.
__device__ inline uint32_t to_tf32(float x) {
  uint32_t rounded = 0;
  FASTLSTM_SM80(asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(x)));
  return rounded;
}

#define FASTLSTM_MMA(name, instruction)                                                          \
  __device__ inline void name(float (&d)[4], const Bits128& a, uint32_t b0, uint32_t b1) {       \
    FASTLSTM_SM80(                                                                               \
        asm(instruction                                                                          \
            " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" : "+f"(d[0]),     \
            "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a.word[0]), "r"(a.word[1]), "r"(a.word[2]), \
            "r"(a.word[3]), "r"(b0), "r"(b1)));                                                  \
  }
FASTLSTM_MMA(mma_bfloat16, "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32")
FASTLSTM_MMA(mma_float16, "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32")
FASTLSTM_MMA(mma_tf32, "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32")
#undef FASTLSTM_MMA
#undef FASTLSTM_SM80

#endif

}  // namespace fastlstm
