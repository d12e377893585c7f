// The dtypes on the CPU, and the formats of rows and matrices in products.
#pragma once
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

// The formats of products. In bfloat16x2 a float32 is the sum of two bfloat16
// (products/split_float32.h). No prepacked weight has bfloat16x2 or float16.
enum class Format { float32, float64, bfloat16, int8, bfloat16x2, float16 };
constexpr const char* kFormatNames[] = {"float32", "float64",    "bfloat16",
                                        "int8",    "bfloat16x2", "float16"};
constexpr int kFormats = sizeof kFormatNames / sizeof *kFormatNames;

// Returns the format of rows that are stored in a dtype.
constexpr Format format_of(Dtype dtype) {
  return dtype == Dtype::kFloat64    ? Format::float64
         : dtype == Dtype::kFloat32  ? Format::float32
         : dtype == Dtype::kBFloat16 ? Format::bfloat16
                                     : Format::float16;
}

constexpr int64_t kElementsPerThread = 1 << 15;  // a thread is woken to convert at least so many

// Calls function(T()) with the C++ type T of a dtype.
auto dispatch_dtype(Dtype dtype, const auto& function) {
  return dtype == Dtype::kFloat64    ? function(double())
         : dtype == Dtype::kFloat32  ? function(float())
         : dtype == Dtype::kBFloat16 ? function(bfloat16())
                                     : function(float16());
}

}  // namespace fastlstm
