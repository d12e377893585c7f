// A list of named cases, run by name, and comparisons that a NaN cannot pass.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <limits>
#include <map>
#include <random>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "dtypes.h"

namespace testing {

inline std::map<std::string, std::function<void()>>& cases() {
  static std::map<std::string, std::function<void()>> all;
  return all;
}
struct Case {
  Case(const std::string& name, std::function<void()> body) { cases()[name] = std::move(body); }
};

struct Failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Prints the names, or runs those given: 0 if all pass, 1 if one fails, 2 if there is none of that
// name.
inline int run_cases(const std::vector<std::string>& names) {
  int failures = 0;
  if (names == std::vector<std::string>{"--list"})
    for (const auto& [name, body] : cases()) std::puts(name.c_str());
  else
    for (const std::string& name : names) {
      const auto found = cases().find(name);
      if (found == cases().end()) {
        std::printf("no case named %s\n", name.c_str());
        return 2;
      }
      try {
        found->second();
        std::printf("ok %s\n", name.c_str());
      } catch (const std::exception& error) {
        std::printf("FAILED %s: %s\n", name.c_str(), error.what());
        ++failures;
      }
      std::fflush(stdout);
    }
  return failures != 0;
}

template <typename... Parts>
std::string text(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

template <typename... Parts>
void check(bool ok, const Parts&... what) {
  if (!ok) throw Failure(text(what...));
}

// Unit roundoff of a stored dtype.
template <typename T>
double roundoff();
template <>
inline double roundoff<double>() {
  return 0x1p-53;
}
template <>
inline double roundoff<float>() {
  return 0x1p-24;
}
template <>
inline double roundoff<fastlstm::bfloat16>() {
  return 0x1p-9;
}
template <>
inline double roundoff<fastlstm::float16>() {
  return 0x1p-11;
}

template <typename T>
const char* name_of();
template <>
inline const char* name_of<double>() {
  return "float64";
}
template <>
inline const char* name_of<float>() {
  return "float32";
}
template <>
inline const char* name_of<fastlstm::bfloat16>() {
  return "bfloat16";
}
template <>
inline const char* name_of<fastlstm::float16>() {
  return "float16";
}

template <typename T>
double to_double(T x) {
  if constexpr (std::is_arithmetic_v<T>)
    return x;
  else
    return static_cast<float>(x);
}

template <typename T>
T from_double(double x) {
  if constexpr (std::is_same_v<T, double>)
    return x;
  else
    return T(static_cast<float>(x));
}

// The largest error may be `multiple` roundoffs of the largest expected value (at least of 1).
template <typename T>
void check_close(const std::vector<T>& actual, const std::vector<double>& expected, double unit,
                 double multiple, const std::string& what) {
  check(actual.size() == expected.size(), what, ": size ", actual.size(), ", expected ",
        expected.size());
  double scale = 1;
  for (double e : expected) scale = std::fmax(scale, std::fabs(e));
  for (size_t i = 0; i < actual.size(); ++i) {
    const double error = std::fabs(to_double(actual[i]) - expected[i]);
    check(error <= multiple * unit * scale, what, "[", i, "] = ", to_double(actual[i]),
          ", expected ", expected[i], ": ", error / (unit * scale), " roundoffs, at most ",
          multiple);
  }
}

// Memory that a kernel is to fill starts with all bits set, which is a NaN.
template <typename T>
std::vector<T> unwritten(size_t n) {
  std::vector<T> values(n);
  std::memset(static_cast<void*>(values.data()), 0xff, n * sizeof(T));
  return values;
}

template <typename To>
std::vector<To> converted(const std::vector<double>& from) {
  std::vector<To> to;
  for (double x : from) to.push_back(from_double<To>(x));
  return to;
}

}  // namespace testing
