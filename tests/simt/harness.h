// Registers test cases and runs them by name; compares values so that a NaN never passes.
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
// Registers a case: `name` is "group/name", `body` throws an exception if the case fails.
struct Case {
  Case(const std::string& name, std::function<void()> body) { cases()[name] = std::move(body); }
};

struct Failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Runs the cases with these names, or prints the names of all cases if `names` is {"--list"}.
// Returns the exit status: 0 if all cases pass, 1 if one fails or there is no name, 2 if a name
// does not exist.
inline int run_cases(const std::vector<std::string>& names) {
  if (names.empty()) std::puts("expected --list or names of cases");
  int failures = names.empty();
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

// Throws a Failure with the text of `what` if `ok` is false.
template <typename... Parts>
void check(bool ok, const Parts&... what) {
  if (!ok) throw Failure(text(what...));
}

template <typename T, typename Value>
constexpr Value of_dtype(Value float64, Value float32, Value bfloat16, Value float16) {
  if (std::is_same_v<T, double>) return float64;
  if (std::is_same_v<T, float>) return float32;
  return std::is_same_v<T, fastlstm::bfloat16> ? bfloat16 : float16;
}

// The unit roundoff of T; for bfloat16 only half of it, 2^-9, so that tests are stricter.
template <typename T>
double roundoff() {
  return of_dtype<T>(0x1p-53, 0x1p-24, 0x1p-9, 0x1p-11);
}

template <typename T>
const char* name_of() {
  return of_dtype<T>("float64", "float32", "bfloat16", "float16");
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

template <typename T>
double rounded(double x) {
  return to_double(from_double<T>(x));
}

using Bytes = std::vector<unsigned char>;

template <typename... Values>
Bytes bytes_of(const Values&... values) {
  Bytes bytes;
  const auto append = [&](const auto& v) {
    const auto* const from = reinterpret_cast<const unsigned char*>(v.data());
    bytes.insert(bytes.end(), from, from + v.size() * sizeof v[0]);
  };
  (append(values), ...);
  return bytes;
}

// Checks that no error is larger than `multiple` * `unit_roundoff` * the largest expected value. If
// the largest expected value is below 1, 1 is used instead.
template <typename T>
void check_close(const std::vector<T>& actual, const std::vector<double>& expected,
                 double unit_roundoff, double multiple, const std::string& what) {
  check(actual.size() == expected.size(), what, ": size ", actual.size(), ", expected ",
        expected.size());
  double scale = 1;
  for (double e : expected) scale = std::fmax(scale, std::fabs(e));
  for (size_t i = 0; i < actual.size(); ++i) {
    const double error = std::fabs(to_double(actual[i]) - expected[i]);
    check(error <= multiple * unit_roundoff * scale, what, "[", i, "] = ", to_double(actual[i]),
          ", expected ", expected[i], ": ", error / (unit_roundoff * scale), " roundoffs, at most ",
          multiple);
  }
}

// n values for a kernel to overwrite: all their bits are set, which is a NaN.
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
