// The gradient of h_0: what comes back through each row's first step. (That of c_0 is what the
// cells leave.)
#pragma once
#include <algorithm>
#include <utility>
#include <vector>

#include "cpu/gemm/encoded_rows.h"
#include "cpu/gemm/packed_matrix.h"
#include "cpu/layer/rows.h"
#include "cpu/stages/recurrent_dropout.h"
#include "cpu/stages/zoneout.h"

namespace fastlstm {

template <typename T>
class InitialStateGradient {
  using A = State_t<T>;

 public:
  // grad_h_0 [B,P]: of one direction; holds dL/dh_n of rows without a step.
  InitialStateGradient(const DirectedRows& rows, int64_t hidden_size, const Tensor& grad_h_0)
      : rows_(rows), hidden_size_(hidden_size), size_(grad_h_0.size(1)), grad_h_0_(grad_h_0) {}

  // The rows that start in a chunk of the walk back.
  template <typename W, typename GateGradientOf>
  void add(const Range& chunk, const PackedMatrix<W>& w_hh, const GateGradientOf& d_gates_of) {
    std::vector<const T*> through;
    std::vector<T*> into;
    for (int64_t row = 0; row < rows_.all().live(0); ++row) {
      const int64_t t = rows_.first_step(row), k = rows_.step_back(t);
      if (k < chunk.begin || k >= chunk.end) continue;
      if (rows_.all().is_reset(t, row)) {
        std::fill_n(gradient(row), size_, T(A(0)));
      } else {
        through.push_back(d_gates_of(t, row));
        into.push_back(gradient(row));
      }
    }
    const EncodedRows<T, W> encoded(through.size(), 4 * hidden_size_);
    multiply_into<T, W>(encoded.encode(std::move(through)), w_hh, into, false);
  }

  // After the last chunk: the mask on the way into W_hh, and what zoneout let through.
  void finish(const RecurrentDropout<T>& dropout, const ZoneoutShares<T>& zoneout) {
    if (!dropout && !zoneout.of_h()) return;
    for (int64_t row = 0; row < rows_.all().live(0); ++row) {
      const T* const mask = dropout.mask(row);
      const A* const kept = zoneout.kept_dh(rows_.all().batch_index(row));
      T* const to = gradient(row);
      for (int64_t n = 0; n < size_; ++n)
        to[n] = T((mask ? A(mask[n]) : A(1)) * A(to[n]) + (kept ? kept[n] : A(0)));
    }
  }

 private:
  T* gradient(int64_t row) const {
    return data<T>(grad_h_0_) + rows_.all().batch_index(row) * size_;
  }

  const DirectedRows& rows_;
  int64_t hidden_size_, size_;
  Tensor grad_h_0_;
};

}  // namespace fastlstm
