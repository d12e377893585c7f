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

// Block 0 hands values to block 1.
enum Handover { kWhole, kNeverStored, kStoredTwice, kLooksUnwritten, kNotAwaited };

template <Handover handover>
__global__ void hand_over_kernel(uint32_t* value, uint32_t* out) {
  const unsigned i = threadIdx.x;
  if (blockIdx.x == 0) {
    if (handover == kNeverStored && i == 7) return;
    simt::exchange_store(value + i, handover == kLooksUnwritten ? 0u - (i == 7) : i);
    if (handover == kStoredTwice && i == 7) simt::exchange_store(value + i, i);
  } else {
    if (handover != kNotAwaited) simt::await_store(value + blockDim.x - 1 - i, 1);
    out[i] = value[blockDim.x - 1 - i];
  }
}

template <Handover handover>
bool hands_over() {
  constexpr unsigned n = 64;
  std::vector<uint32_t> value(n, ~0u), out(n);
  simt::launch(dim3(2), dim3(n), 0, simt::kAllBlocks,
               [&] { hand_over_kernel<handover>(value.data(), out.data()); });
  for (unsigned i = 0; i < n; ++i)
    if (out[i] != n - 1 - i) return false;
  return true;
}

const Case exchange("emulator/exchange between blocks", [] {
  for (simt::seed() = 1; simt::seed() <= 10; ++simt::seed())
    check(hands_over<kWhole>(), "wrong value handed over, seed ", simt::seed());
});
const Case never("emulator/finds a value that nobody stores",
                 [] { check(faults([] { hands_over<kNeverStored>(); }), "not noticed"); });
const Case twice("emulator/finds a value that is stored twice",
                 [] { check(faults([] { hands_over<kStoredTwice>(); }), "not noticed"); });
const Case polls("emulator/finds a value that looks unwritten",
                 [] { check(faults([] { hands_over<kLooksUnwritten>(); }), "not noticed"); });
const Case early("emulator/finds a read that does not wait",
                 [] { check(!hands_over<kNotAwaited>(), "not noticed"); });

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
const Case rounding_b("emulator/bfloat16 rounds to nearest",
                      [] { check_rounding<fastlstm::bfloat16>(7, 0x7f80); });
const Case rounding_h("emulator/float16 rounds to nearest",
                      [] { check_rounding<fastlstm::float16>(10, 0x7c00); });

}  // namespace
