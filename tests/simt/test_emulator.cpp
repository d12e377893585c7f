// The emulator itself: faults that it must notice, beside those of MUTANTS in
// tests/cuda/test_simt.py, and the 16-bit types.
#include <numeric>

#include "device.h"
#include "harness.h"

namespace {

using fastlstm::launch;
using testing::Case;
using testing::check;

// Reverses a block's numbers through shared memory, with a mistake.
enum Fault { kDivergentBarrier, kUnwritten, kBeyondEnd };

template <Fault fault>
__global__ void reverse_kernel(const float* in, float* out) {
  float* shared = reinterpret_cast<float*>(simt::self().block->shared.get());
  const unsigned n = blockDim.x, i = threadIdx.x;
  if (!(fault == kUnwritten && i == 7)) shared[i] = in[i];
  if (fault != kDivergentBarrier || i % 2 == 0) __syncthreads();
  out[i] = shared[n - 1 - i + (fault == kBeyondEnd)];
}

// How many of them are wrong.
template <Fault fault>
int reverse() {
  constexpr unsigned n = 96;
  std::vector<float> in(n), out(n);
  std::iota(in.begin(), in.end(), 1.0f);
  launch(reverse_kernel<fault>, dim3(1), dim3(n), n * sizeof(float), nullptr, in.data(),
         out.data());
  int wrong = 0;
  for (unsigned i = 0; i < n; ++i) wrong += !(out[i] == in[n - 1 - i]);
  return wrong;
}

__global__ void store_twice_kernel(uint32_t* word) {
  for (int i = 0; i < 2; ++i) simt::exchange_store(word, 7);
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

const Case divergent("emulator/finds a divergent barrier",
                     [] { check(faults([] { reverse<kDivergentBarrier>(); }), "not noticed"); });
const Case unwritten("emulator/finds shared memory that was never written",
                     [] { check(reverse<kUnwritten>() == 1, "not noticed"); });
// Only an ASan build can see this one; tests/cuda/test_simt.py expects the crash there.
const Case beyond("planted/read beyond shared memory", [] { reverse<kBeyondEnd>(); });
const Case twice("emulator/finds a value that is stored twice", [] {
  uint32_t word = ~0u;
  check(faults([&] { launch(store_twice_kernel, dim3(1), dim3(1), 0, nullptr, &word); }),
        "not noticed");
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
