// The state before a row's step, wherever it lies.
#pragma once
#include <cstring>
#include <vector>

#include "cpu/dtypes.h"
#include "cpu/layer/rows.h"
#include "pointers.h"

namespace fastlstm {

// Zeros to point at, recognizable by their address. In every dtype all their bits are 0.
template <typename T>
class Zeros {
 public:
  explicit Zeros(int64_t size) : states_(size) {}
  const T* values() const { return reinterpret_cast<const T*>(states_.data()); }
  const State_t<T>* states() const { return states_.data(); }

 private:
  std::vector<State_t<T>> states_;
};

// h_0 [D,B,P] and c_0 [D,B,H] in the dtype of the state, contiguous.
template <typename T>
struct InitialState {
  explicit InitialState(const Layer& layer)
      : h_0(layer.h_0.contiguous()),
        c_0(as_dtype(layer.c_0, state_dtype(layer.input.scalar_type())).contiguous()) {}
  Tensor h_0, c_0;
};

// The state before a step of one direction: h_0 and c_0 where a row starts, zeros where it is
// reset, else what the step before has written.
template <typename T>
class PreviousState {
  using A = State_t<T>;

 public:
  // output [R,D*P] and cells [D,R,H], or c_state [D,B,H] with each row's last c where cells are
  // nullptr.
  PreviousState(const InitialState<T>& initial, const DirectedRows& rows, const Sizes& sizes,
                int64_t d, const T* output, const A* cells, const Zeros<T>& zeros,
                const A* c_state = nullptr)
      : rows_(rows),
        zeros_(zeros),
        hidden_size_(sizes.hidden_size),
        output_size_(sizes.output_size),
        output_stride_(sizes.directions * output_size_),
        h_0_(const_data<T>(initial.h_0) + d * sizes.batch * output_size_),
        c_0_(const_data<A>(initial.c_0) + d * sizes.batch * hidden_size_),
        output_(output + d * output_size_),
        cells_(cells ? cells + d * sizes.flat_rows * hidden_size_ : nullptr),
        c_state_(c_state ? c_state + d * sizes.batch * hidden_size_ : nullptr),
        h_0_is_zero_(is_zero(h_0_, sizes.batch * output_size_)) {}

  struct State {
    const T* h;
    const A* c;
  };
  // An h_0 of zeros, as it is if none was given, is `zeros`: then the first step has no product
  // with W_hh.
  State at(int64_t t, int64_t row) const {
    const Rows& rows = rows_.all();
    if (rows.is_reset(t, row)) return {zeros_.values(), zeros_.states()};
    const int64_t b = rows.batch_index(row);
    if (t == rows_.first_step(row))
      return {h_0_is_zero_ ? zeros_.values() : h_0_ + b * output_size_, c_0_ + b * hidden_size_};
    const int64_t before = rows.flat(rows_.step_before(t), row);
    return {output_ + before * output_stride_,
            cells_ ? cells_ + before * hidden_size_ : c_state_ + b * hidden_size_};
  }
  const T* h(int64_t t, int64_t row) const { return at(t, row).h; }

 private:
  static bool is_zero(const T* values, int64_t count) {
    const auto* const bytes = reinterpret_cast<const char*>(values);
    const size_t size = count * sizeof(T);
    return size > 0 && bytes[0] == 0 && std::memcmp(bytes, bytes + 1, size - 1) == 0;
  }

  const DirectedRows& rows_;
  const Zeros<T>& zeros_;
  int64_t hidden_size_, output_size_, output_stride_;
  const T* h_0_;
  const A* c_0_;
  const T* output_;
  const A* cells_;
  const A* c_state_;
  bool h_0_is_zero_;
};

}  // namespace fastlstm
