// The dtypes on the CPU, and the formats of rows and matrices in products.
#pragma once
#include <optional>
#include <type_traits>

#include "cpu/half.h"
#include "dtype_list.h"

namespace fastlstm {

// The type of the cell state and of all sums for tensors of T.
template <typename T>
using State_t = std::conditional_t<std::is_same_v<T, double>, double, float>;

template <typename T>
constexpr Dtype dtype_of_type = std::is_same_v<T, double>     ? Dtype::kFloat64
                                : std::is_same_v<T, float>    ? Dtype::kFloat32
                                : std::is_same_v<T, bfloat16> ? Dtype::kBFloat16
                                                              : Dtype::kFloat16;

// Calls macro(format, PyTorch's name of the dtype of weights before they are packed). In bfloat16x2
// a float32 is the sum of two bfloat16 (products/split_float32.h); no prepacked weight has it.
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

// Returns the format of rows that are stored in a dtype. No kernel multiplies float16.
constexpr std::optional<Format> format_of(Dtype dtype) {
  if (dtype == Dtype::kFloat16) return std::nullopt;
  return dtype == Dtype::kFloat64   ? Format::float64
         : dtype == Dtype::kFloat32 ? Format::float32
                                    : Format::bfloat16;
}

// Calls function(T()) with the C++ type T of a dtype.
auto dispatch_dtype(Dtype dtype, const auto& function) {
  return dtype == Dtype::kFloat64    ? function(double())
         : dtype == Dtype::kFloat32  ? function(float())
         : dtype == Dtype::kBFloat16 ? function(bfloat16())
                                     : function(float16());
}

}  // namespace fastlstm
