// The dtypes on the CPU, and the formats in which products take rows and matrices.
#pragma once
#include <cstdint>
#include <optional>
#include <type_traits>

#include "cpu/half.h"
#include "dtype_list.h"

namespace fastlstm {

// The dtype of the cell state for tensors of type T. Products are summed in it.
template <typename T>
using State_t = std::conditional_t<std::is_same_v<T, double>, double, float>;

// The Dtype of the C++ type T.
template <typename T>
constexpr Dtype dtype_of_rows = std::is_same_v<T, double>     ? Dtype::kFloat64
                                : std::is_same_v<T, float>    ? Dtype::kFloat32
                                : std::is_same_v<T, bfloat16> ? Dtype::kBFloat16
                                                              : Dtype::kFloat16;

// The formats of products. Calls macro(name of the format, PyTorch's name of the dtype). The dtype
// is the one that weights have after they are unpacked from the format. bfloat16x2 is float32 as
// the sum of two bfloat16 (products/split_float32.h); weights are packed in it for one call only.
#define FASTLSTM_FOR_EACH_FORMAT(macro)                                                    \
  macro(float32, Float) macro(float64, Double) macro(bfloat16, BFloat16) macro(int8, Char) \
      macro(bfloat16x2, Float)

#define FASTLSTM_NAME(name, unpacked) name,
enum class Format { FASTLSTM_FOR_EACH_FORMAT(FASTLSTM_NAME) };
#undef FASTLSTM_NAME
#define FASTLSTM_NAME(name, unpacked) #name,
constexpr const char* kFormatNames[] = {FASTLSTM_FOR_EACH_FORMAT(FASTLSTM_NAME)};
#undef FASTLSTM_NAME
constexpr int kFormats = sizeof kFormatNames / sizeof *kFormatNames;

// The format of rows of a dtype without any conversion; nothing for float16, which no product
// takes.
constexpr std::optional<Format> format_of(Dtype dtype) {
  switch (dtype) {
    case Dtype::kFloat64:
      return Format::float64;
    case Dtype::kFloat32:
      return Format::float32;
    case Dtype::kBFloat16:
      return Format::bfloat16;
    case Dtype::kFloat16:
      return std::nullopt;
  }
  return std::nullopt;  // not reached: no value of Dtype is left
}

// Calls function(T()) with the C++ type T of a dtype.
auto dispatch_dtype(Dtype dtype, const auto& function) {
  switch (dtype) {
    case Dtype::kFloat64:
      return function(double());
    case Dtype::kFloat32:
      return function(float());
    case Dtype::kBFloat16:
      return function(bfloat16());
    case Dtype::kFloat16:
      break;
  }
  return function(float16());
}

}  // namespace fastlstm
