// The emulator itself: what it must compute, and the faults that it must notice.
#include <numeric>

#include "device.h"
#include "harness.h"

namespace {

using fastlstm::launch;
using testing::Case;
using testing::check;

// Reverses a block's numbers through shared memory; `Fault` plants a mistake.
enum Fault { kNone, kNoBarrier, kDivergentBarrier, kUnwritten, kBeyondEnd };

template <Fault fault>
__global__ void reverse_kernel(const float* in, float* out) {
  float* shared = reinterpret_cast<float*>(simt::self().block->shared.get());
  const unsigned n = blockDim.x, i = threadIdx.x;
  if (!(fault == kUnwritten && i == 7)) shared[i] = in[i];
  if (fault == kDivergentBarrier ? i % 2 == 0 : fault != kNoBarrier) __syncthreads();
  out[i] = shared[n - 1 - i + (fault == kBeyondEnd)];
}

template <Fault fault>
bool reverses() {
  constexpr unsigned n = 96;
  std::vector<float> in(n), out(n);
  std::iota(in.begin(), in.end(), 1.0f);
  launch(reverse_kernel<fault>, dim3(1), dim3(n), n * sizeof(float), nullptr, in.data(),
         out.data());
  for (unsigned i = 0; i < n; ++i)
    if (!(out[i] == in[n - 1 - i])) return false;
  return true;
}

template <typename Body>
bool faults(Body body) {
  try {
    body();
  } catch (const simt::Fault&) {
    return true;
  }
  return false;
}

const Case barrier("emulator/barrier", [] {
  for (simt::seed() = 1; simt::seed() <= 5; ++simt::seed())
    check(reverses<kNone>(), "a correct kernel must pass, seed ", simt::seed());
});
const Case no_barrier("emulator/finds a missing barrier",
                      [] { check(!reverses<kNoBarrier>(), "not noticed"); });
const Case divergent("emulator/finds a divergent barrier",
                     [] { check(faults([] { reverses<kDivergentBarrier>(); }), "not noticed"); });
const Case unwritten("emulator/finds shared memory that was never written",
                     [] { check(!reverses<kUnwritten>(), "not noticed"); });
// Only an ASan build can see this one; tests/test_simt.py expects the crash there.
const Case beyond("planted/read beyond shared memory", [] { reverses<kBeyondEnd>(); });

// Block 0 hands a value to block 1 through a flag.
enum Handover { kOrdered, kNoRelease, kNoAcquire, kReleaseTooEarly, kFlagTooHigh };

template <Handover handover>
__global__ void hand_over_kernel(float* value, unsigned* flag, float* out) {
  if (blockIdx.x == 0) {
    if (handover == kReleaseTooEarly && threadIdx.x == 0) simt::store_release(flag, 1);
    simt::exchange_store(value + threadIdx.x, 1.0f + threadIdx.x);
    __syncthreads();
    if (handover != kNoRelease && threadIdx.x == 0) simt::store_release(flag, 1);
  } else {
    if (handover != kNoAcquire && threadIdx.x == 0)
      simt::wait_until_at_least(flag, handover == kFlagTooHigh ? 2 : 1);
    __syncthreads();
    out[threadIdx.x] = simt::exchange_load(value + blockDim.x - 1 - threadIdx.x);
  }
}

template <Handover handover>
void hand_over() {
  constexpr unsigned n = 64;
  std::vector<float> value(n), out(n);
  unsigned flag = 0;
  simt::launch(dim3(2), dim3(n), 0, simt::kAllBlocks,
               [&] { hand_over_kernel<handover>(value.data(), &flag, out.data()); });
  for (unsigned i = 0; i < n; ++i) check(out[i] == float(n - i), "wrong value handed over");
}

template <Handover handover>
bool some_seed_faults() {
  for (simt::seed() = 1; simt::seed() <= 10; ++simt::seed())
    if (faults([] { hand_over<handover>(); })) return true;
  return false;
}

const Case exchange("emulator/exchange between blocks", [] {
  for (simt::seed() = 1; simt::seed() <= 10; ++simt::seed()) hand_over<kOrdered>();
});
const Case no_release("emulator/finds a flag that nobody raises", [] {
  check(faults([] { hand_over<kNoRelease>(); }) && faults([] { hand_over<kFlagTooHigh>(); }),
        "not noticed");
});
const Case no_acquire("emulator/finds a read without acquire",
                      [] { check(some_seed_faults<kNoAcquire>(), "not noticed"); });
const Case early("emulator/finds a release before the write",
                 [] { check(some_seed_faults<kReleaseTooEarly>(), "not noticed"); });

const Case too_large("emulator/refuses a cooperative launch that does not fit", [] {
  simt::resident_blocks() = 3;
  check(simt::launch(dim3(4), dim3(32), 0, simt::kAllBlocks, [] {}) ==
            cudaErrorCooperativeLaunchTooLarge,
        "4 blocks ran on a device for 3");
  simt::resident_blocks() = 1024;
});

__global__ void sum_kernel(const float* in, float* out) {
  float x = in[threadIdx.x];
  for (int mask = 16; mask > 0; mask /= 2) x += simt::shuffle_xor(x, mask);
  out[threadIdx.x] = x;
}
const Case shuffles("emulator/shuffle", [] {
  std::vector<float> in(64), out(64);
  std::iota(in.begin(), in.end(), 0.0f);
  launch(sum_kernel, dim3(1), dim3(64), 0, nullptr, in.data(), out.data());
  for (int i = 0; i < 64; ++i)
    check(out[i] == (i < 32 ? 496.0f : 1520.0f), "lane ", i, ": ", out[i]);
});

// Every 16-bit value must survive the round trip, and a float must go to the nearest one, to the
// even one of two equally near.
template <typename H>
void check_rounding(uint32_t mantissa_bits, uint32_t infinity) {
  const auto value = [](uint32_t bits) {
    H h;
    h.bits = static_cast<uint16_t>(bits);
    return static_cast<float>(h);
  };
  for (uint32_t bits = 0; bits <= infinity; ++bits)
    for (uint32_t sign : {0u, 0x8000u})
      check(H(value(bits | sign)).bits == (bits | sign), "round trip of ", bits | sign);
  for (uint32_t bits = 0; bits + 1 < infinity; ++bits) {
    const double low = value(bits), high = value(bits + 1), middle = (low + high) / 2;
    const auto rounded = [](double x) { return H(static_cast<float>(x)).bits; };
    check(rounded(middle) == (bits % 2 ? bits + 1 : bits), "tie above ", bits);
    check(rounded(low + (high - low) * 0.49) == bits, "just below the middle above ", bits);
    check(rounded(low + (high - low) * 0.51) == bits + 1, "just above the middle above ", bits);
  }
  check(std::isnan(static_cast<float>(H(std::nanf("")))), "NaN");
  const float largest = value(infinity - 1);
  check(H(largest * (1 + std::ldexp(1.0f, -static_cast<int>(mantissa_bits)))).bits == infinity ||
            std::isinf(largest * 2),
        "overflow to infinity");
}
const Case rounding_b("emulator/bfloat16 rounds as CUDA does",
                      [] { check_rounding<simt::bfloat16>(7, 0x7f80); });
const Case rounding_h("emulator/float16 rounds as CUDA does",
                      [] { check_rounding<simt::float16>(10, 0x7c00); });

}  // namespace
