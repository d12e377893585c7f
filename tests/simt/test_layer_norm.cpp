// One step of the stepwise engine with layer normalization: the kernels of each dtype against those
// of float64. tests/cuda/test_cuda_op.py compares the kernels of float64 with tests/oracle.py.
#include <runtime.h>

#include "../../csrc/cuda/launch.h"
#include "harness.h"

namespace {

using namespace fastlstm;
using namespace testing;
using Values = std::vector<double>;

// Runs forward and backward in the dtype T, with states in A. All inputs are rounded to Given
// first. There are four rows: an ordinary row, a row that is reset before the step, a dead row, and
// a row that starts at this step, so that backward uses its c_0. Returns all results, by name.
template <typename T, typename A, typename Given>
std::map<std::string, Values> run(int64_t H) {
  constexpr int64_t B = 4, kPrevRows = 3;
  std::mt19937 random(1);
  std::normal_distribution<double> normal;
  const auto draw = [&](auto element, int64_t n, double scale, double mean = 0) {
    using To = decltype(element);
    std::vector<To> values(n);
    for (To& v : values)
      v = from_double<To>(to_double(from_double<Given>(mean + scale * normal(random))));
    return values;
  };
  const auto x = draw(T(), B * 4 * H, 1), h_gates = draw(T(), B * 4 * H, 1);
  const auto gain_hh = draw(T(), 4 * H, 0.2, 1), gain_c = draw(T(), H, 0.2, 1);
  const auto bias_c = draw(T(), H, 0.2), d_output = draw(T(), B * H, 0.5);
  const auto c_0 = draw(A(), B * H, 1), d_cells = draw(A(), B * H, 0.5);
  auto h = draw(T(), B * H, 0.5), dh = draw(T(), B * H, 0.5);
  auto c = c_0, dc = draw(A(), B * H, 0.5);
  // Vectors, not arrays: in tests/gpu kernels can read only memory from operator new.
  const std::vector<char> reset = {false, true, false, false};
  const std::vector<int64_t> lengths = {2, 2, 1, 2};
  Step common{};
  common.t = 1, common.rows = B, common.hidden_size = H, common.prev_rows = kPrevRows;
  common.lengths = lengths.data();
  common.reset = reinterpret_cast<const bool*>(reset.data());

  auto gates = unwritten<T>(B * 4 * H), output = unwritten<T>(B * H);
  auto cells = unwritten<A>(B * H);
  NormForwardStep<T, A> forward{};
  static_cast<Step&>(forward) = common;
  forward.x_gates = x.data(), forward.h_gates = h_gates.data(), forward.gates = gates.data();
  forward.c_state = c.data(), forward.cells = cells.data();
  forward.h_state = h.data(), forward.output = output.data(), forward.output_stride = H;
  forward.gain_hh = gain_hh.data(), forward.gain_c = gain_c.data();
  forward.bias_c = bias_c.data();
  check(launch_step(forward, nullptr) == cudaSuccess, "launch");

  auto d_gates = unwritten<T>(B * 4 * H), d_h_gates = unwritten<T>(B * 4 * H);
  auto d_normed_cells = unwritten<A>(B * H);
  NormBackwardStep<T, A> backward{};
  static_cast<Step&>(backward) = common;
  backward.gates = gates.data(), backward.cells = cells.data();
  backward.prev_cells = backward.c_0 = c_0.data();
  backward.d_output = d_output.data(), backward.d_cells = d_cells.data();
  backward.dh_state = dh.data(), backward.dc_state = dc.data(), backward.d_gates = d_gates.data();
  backward.d_output_stride = backward.d_cells_stride = H;
  backward.gain_hh = gain_hh.data(), backward.gain_c = gain_c.data();
  backward.bias_c = bias_c.data(), backward.h_gates = h_gates.data();
  backward.d_h_gates = d_h_gates.data(), backward.d_normed_cells = d_normed_cells.data();
  check(launch_step(backward, nullptr) == cudaSuccess, "launch");

  std::map<std::string, Values> results;
  const auto add = [&](const char* name, const auto& values) {
    for (auto value : values) results[name].push_back(to_double(value));
  };
  add("gates", gates), add("output", output), add("h", h), add("c", c), add("cells", cells);
  add("d_gates", d_gates), add("d_h_gates", d_h_gates), add("d_normed_cells", d_normed_cells);
  add("dh", dh), add("dc", dc);
  return results;
}

template <typename T>
void add_cases() {
  const std::string prefix = std::string("layer norm/") + name_of<T>() + "/";
  const auto add = [&](const std::string& name, int64_t hidden_size, unsigned seeds) {
    Case(name, [=] {
      for (simt::seed() = 1; simt::seed() <= seeds; ++simt::seed()) {
        const auto expected = run<double, double, T>(hidden_size);
        // Layer normalization divides by a standard deviation. If it is small, errors grow.
        for (const auto& [what, values] : run<T, float, T>(hidden_size)) {
          const double multiple = what == "gates" ? 32 : what[0] == 'd' ? 128 : 64;
          check_close(values, expected.at(what), roundoff<T>(), multiple, what);
        }
      }
    });
  };
  add(prefix + "one row", 13, 3);
  add(prefix + "more units than threads", 270, 3);
  add("deep/" + prefix + "many units", 1100, 1);  // for the loops that are unrolled by four
}
const bool added = (add_cases<float>(), add_cases<bfloat16>(), add_cases<float16>(), true);

}  // namespace
