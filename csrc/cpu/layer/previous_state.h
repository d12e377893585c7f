// The state before a row's step, wherever it lies.
#pragma once
#include <cstring>
#include <vector>

#include "cpu/dtypes.h"
#include "cpu/layer/rows.h"

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

// Of one direction: h_0 and c_0 where a row starts, zeros where it is reset, else what the step
// before has written.
template <typename T>
class PreviousState {
  using A = State_t<T>;

 public:
  // output [R,D*P]; cells [D,R,H] or undefined; c_state, [B,H], has each row's last c where cells
  // is undefined.
  PreviousState(const Layer& layer, const DirectedRows& rows, int64_t d, const Tensor& output,
                const Tensor& cells, const A* c_state, const Zeros<T>& zeros)
      : rows_(rows),
        zeros_(zeros),
        h_0_(layer.h_0.select(0, d).contiguous()),
        c_0_(layer.c_0.select(0, d).to(layer.state_options()).contiguous()),
        hidden_size_(layer.hidden_size.expect_int()),
        output_size_(layer.output_size.expect_int()),
        output_stride_(layer.num_directions() * output_size_),
        output_(const_data<T>(output) + d * output_size_),
        cells_(cells.defined()
                   ? const_data<A>(cells) + d * layer.flat_rows.expect_int() * hidden_size_
                   : nullptr),
        c_state_(c_state),
        h_0_is_zero_(is_zero(h_0_)) {}

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
      return {h_0_is_zero_ ? zeros_.values() : const_data<T>(h_0_) + b * output_size_,
              const_data<A>(c_0_) + b * hidden_size_};
    const int64_t before = rows.flat(rows_.step_before(t), row);
    return {output_ + before * output_stride_,
            cells_ ? cells_ + before * hidden_size_ : c_state_ + b * hidden_size_};
  }
  const T* h(int64_t t, int64_t row) const { return at(t, row).h; }

 private:
  static bool is_zero(const Tensor& tensor) {
    const auto* const bytes = static_cast<const char*>(tensor.const_data_ptr());
    const size_t count = tensor.nbytes();
    return count > 0 && bytes[0] == 0 && std::memcmp(bytes, bytes + 1, count - 1) == 0;
  }

  const DirectedRows& rows_;
  const Zeros<T>& zeros_;
  Tensor h_0_, c_0_;
  int64_t hidden_size_, output_size_, output_stride_;
  const T* output_;
  const A* cells_;
  const A* c_state_;
  bool h_0_is_zero_;
};

}  // namespace fastlstm
