// A layer's rows, whatever their input: dense, packed, ragged or batch-first.
#pragma once
#include <algorithm>
#include <cstring>
#include <numeric>
#include <vector>

#include "core/layer_call.h"
#include "cpu/dtypes.h"
#include "pointers.h"

namespace fastlstm {

// A tensor in a dtype, without the dispatcher where it is in it.
inline Tensor as_dtype(const Tensor& tensor, at::ScalarType dtype) {
  return tensor.scalar_type() == dtype ? tensor : tensor.to(dtype);
}

// The live rows of every step, sorted by length, and where each of them lies among the flat rows.
class SortedRows {
 public:
  explicit SortedRows(const LayerCall& layer)
      : steps_(layer.steps.expect_int()),
        batch_(layer.batch.expect_int()),
        packed_(layer.packed()),
        numbers_(2 * (batch_ + steps_)),
        order_(numbers_.data()),
        length_(order_ + batch_),
        live_(length_ + batch_),
        offset_(live_ + steps_) {
    std::iota(order_, order_ + batch_, 0);
    std::fill_n(live_, steps_, batch_);
    if (packed_) {
      const Tensor sizes = layer.batch_sizes->contiguous();
      std::copy_n(sizes.const_data_ptr<int64_t>(), steps_, live_);
    } else if (layer.lengths) {
      const Tensor lengths = layer.lengths->contiguous();
      const int64_t* length = lengths.const_data_ptr<int64_t>();
      std::stable_sort(order_, order_ + batch_,
                       [length](int64_t a, int64_t b) { return length[a] > length[b]; });
      for (int64_t t = 0, rows = batch_; t < steps_; ++t) {
        while (rows > 0 && length[order_[rows - 1]] <= t) --rows;
        live_[t] = rows;
      }
    }
    for (int64_t t = 0; t < steps_; ++t) offset_[t] = total_, total_ += live_[t];
    for (int64_t t = steps_ - 1, row = 0; t >= 0; --t)
      for (; row < live_[t]; ++row) length_[row] = t + 1;
    if (layer.reset) {
      reset_tensor_ = layer.reset->contiguous();
      reset_ = reset_tensor_.const_data_ptr<bool>();
    }
  }
  SortedRows(const SortedRows&) = delete;

  int64_t steps() const { return steps_; }
  int64_t batch() const { return batch_; }
  int64_t live(int64_t t) const { return live_[t]; }
  int64_t total() const { return total_; }
  // Batch index of a row, for everything of shape [B,...].
  int64_t batch_index(int64_t row) const { return order_[row]; }
  int64_t length(int64_t row) const { return length_[row]; }
  int64_t flat(int64_t t, int64_t row) const {
    return packed_ ? offset_[t] + row : t * batch_ + order_[row];
  }
  bool is_reset(int64_t t, int64_t row) const { return reset_ && reset_[t * batch_ + order_[row]]; }

 private:
  int64_t steps_, batch_;
  bool packed_;
  int64_t total_ = 0;
  std::vector<int64_t> numbers_;  // those below, in one piece
  int64_t *order_, *length_, *live_, *offset_;
  Tensor reset_tensor_;
  const bool* reset_ = nullptr;
};

// The rows as one direction walks them.
class DirectionRows {
 public:
  DirectionRows(const SortedRows& rows, bool reverse) : rows_(rows), reverse_(reverse) {}

  const SortedRows& all() const { return rows_; }
  bool reverse() const { return reverse_; }
  // The k-th step of the walk, and of the walk back.
  int64_t step(int64_t k) const { return reverse_ ? rows_.steps() - 1 - k : k; }
  int64_t step_back(int64_t k) const { return step(rows_.steps() - 1 - k); }
  int64_t first_step(int64_t row) const { return reverse_ ? rows_.length(row) - 1 : 0; }
  int64_t last_step(int64_t row) const { return reverse_ ? 0 : rows_.length(row) - 1; }
  int64_t step_before(int64_t t) const { return reverse_ ? t + 1 : t - 1; }
  int64_t step_after(int64_t t) const { return reverse_ ? t - 1 : t + 1; }

  // The pointers find(t, row) of the live rows of some steps of the walk, or of the walk back.
  template <typename Pointer>
  std::vector<Pointer> live(const Range& steps, bool back, const auto& find) const {
    std::vector<Pointer> pointers;
    for (int64_t k = steps.begin; k < steps.end; ++k) {
      const int64_t t = back ? step_back(k) : step(k);
      for (int64_t row = 0; row < rows_.live(t); ++row) pointers.push_back(find(t, row));
    }
    return pointers;
  }

 private:
  const SortedRows& rows_;
  bool reverse_;
};

// The sequence [T,B,size] or [R,size] of a tensor whose last dimension is contiguous.
template <typename T>
class SequenceRows {
 public:
  SequenceRows(const Tensor& tensor, const SortedRows& rows)
      : tensor_(tensor.stride(-1) == 1 || tensor.size(-1) == 1 ? tensor : tensor.contiguous()),
        data_(static_cast<T*>(const_cast<void*>(tensor_.const_data_ptr()))),
        rows_(rows),
        step_stride_(tensor.dim() == 3 ? tensor_.stride(0) : 0),
        row_stride_(tensor_.stride(-2)) {}
  T* at(int64_t t, int64_t row) const {
    return tensor_.dim() == 3 ? data_ + t * step_stride_ + rows_.batch_index(row) * row_stride_
                              : data_ + rows_.flat(t, row) * row_stride_;
  }

 private:
  Tensor tensor_;
  T* data_;
  const SortedRows& rows_;
  int64_t step_stride_, row_stride_;
};

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
  explicit InitialState(const LayerCall& layer)
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
  PreviousState(const InitialState<T>& initial, const DirectionRows& rows, const Sizes& sizes,
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
    const SortedRows& rows = rows_.all();
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

  const DirectionRows& rows_;
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
