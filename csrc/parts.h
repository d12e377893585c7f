// Dividing a range of integers into parts. This file knows neither torch nor CUDA.
#pragma once
#include <cstdint>

namespace fastlstm {

constexpr int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t round_up(int64_t a, int64_t b) { return divide_up(a, b) * b; }

// A range of integers, and part `index` of [0, count) after it is cut into `parts` nearly equal
// parts.
struct Range {
  int64_t begin, end;
};
inline Range part_of(int64_t count, int64_t index, int64_t parts) {
  return {index * count / parts, (index + 1) * count / parts};
}

}  // namespace fastlstm
