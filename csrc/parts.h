// Dividing a range of integers into parts. This file knows neither torch nor CUDA.
#pragma once
#include <cstdint>

namespace fastlstm {

constexpr int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t round_up(int64_t a, int64_t b) { return divide_up(a, b) * b; }

// The integers [begin, end).
struct Range {
  int64_t begin, end;
};
// Returns part `index` of [0, count), which is cut into `parts` nearly equal parts.
inline Range part_of(int64_t count, int64_t index, int64_t parts) {
  return {index * count / parts, (index + 1) * count / parts};
}

}  // namespace fastlstm
