// The precision of float32 products that the user set. The setting is an enum from torch 2.10 on
// and a string in 2.9. Older versions have only switches for TF32.
#pragma once
#include <ATen/Context.h>
#include <torch/version.h>

#include <string>

namespace fastlstm {

#define FASTLSTM_TORCH (100 * TORCH_VERSION_MAJOR + TORCH_VERSION_MINOR)

#if FASTLSTM_TORCH >= 210
constexpr auto kMkldnn = at::Float32Backend::MKLDNN, kCuda = at::Float32Backend::CUDA;
constexpr auto kRnn = at::Float32Op::RNN, kMatmul = at::Float32Op::MATMUL;
using Float32Precision = at::Float32Precision;
constexpr auto kTf32 = Float32Precision::TF32, kBf16 = Float32Precision::BF16;
#else
constexpr auto kMkldnn = "mkldnn", kCuda = "cuda", kRnn = "rnn", kMatmul = "matmul";
using Float32Precision = std::string;
constexpr auto kTf32 = "tf32", kBf16 = "bf16";
#endif

#if FASTLSTM_TORCH >= 209
inline bool matmul_allows_tf32() {
  return at::globalContext().float32Precision(kCuda, kMatmul) == kTf32;
}
inline Float32Precision rnn_precision() {
  return at::globalContext().float32Precision(kMkldnn, kRnn);
}
#else
inline bool matmul_allows_tf32() { return at::globalContext().allowTF32CuBLAS(); }
inline Float32Precision rnn_precision() { return "none"; }
#endif

}  // namespace fastlstm
