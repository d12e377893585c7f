// The arithmetic of cutting things into parts. Plain C++.
#pragma once
#include <charconv>
#include <cstdint>
#include <string_view>

namespace fastlstm {

constexpr int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t round_up(int64_t a, int64_t b) { return divide_up(a, b) * b; }

// Part `index` of [0, count) cut into `parts`.
struct Range {
  int64_t begin, end;
};
inline Range part_of(int64_t count, int64_t index, int64_t parts) {
  return {index * count / parts, (index + 1) * count / parts};
}

// The positive numbers of "PREFIX:AxBxC", as a user names a division; false for any other name.
inline bool parse_division(std::string_view name, std::string_view prefix, int (&numbers)[3]) {
  if (name.substr(0, prefix.size()) != prefix) return false;
  const char *at = name.data() + prefix.size(), *const end = name.data() + name.size();
  char separator = ':';
  for (int& number : numbers) {
    if (at == end || *at++ != separator) return false;
    const auto [next, error] = std::from_chars(at, end, number);
    if (error != std::errc() || number < 1 || number > 9999) return false;
    at = next, separator = 'x';
  }
  return at == end;
}

}  // namespace fastlstm
