// The order of the columns of W_ih^T, W_hh^T and the bias in the forward pass: an array [vectors of
// units][4 gates i, f, g, o][lanes], so that one thread has all four gates of its units. If few
// units are left for the last vector, its gates have fewer lanes, so that less padding is computed.
#pragma once
#include <algorithm>

#include "cpu/products/gemm_kernels.h"

namespace fastlstm {

struct GateOrder {
  int64_t hidden_size, lanes;
  int64_t last_lanes = lanes;  // of each gate in the last vector

  // `all_lanes`: the last vector has all lanes, too.
  GateOrder(const GemmLayout& gemm, int64_t hidden_size, bool all_lanes = false)
      : hidden_size(hidden_size), lanes(gemm.lanes) {
    const int64_t units = hidden_size % lanes;  // of the last vector, if it is incomplete
    const int64_t multiple = gemm.vectors_multiple * lanes;
    while (units && !all_lanes && last_lanes / 2 >= units && last_lanes * 2 % multiple == 0)
      last_lanes /= 2;
  }
  int64_t columns() const { return 4 * ((hidden_size - 1) / lanes * lanes + last_lanes); }
  // The lanes of a gate in the vector of units that begins with `unit`.
  int64_t lanes_at(int64_t unit) const { return unit + lanes > hidden_size ? last_lanes : lanes; }
  // Calls body(row of the weight [4 * hidden_size,K]) for each column in order. Padding repeats the
  // last unit.
  void for_each_row(const auto& body) const {
    for (int64_t unit = 0; unit < hidden_size; unit += lanes)
      for (int64_t gate = 0; gate < 4; ++gate)
        for (int64_t k = unit, end = unit + lanes_at(unit); k < end; ++k)
          body(gate * hidden_size + std::min(k, hidden_size - 1));
  }
};

}  // namespace fastlstm
