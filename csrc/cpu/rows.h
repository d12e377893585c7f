// Pointers to the rows of a layer, for dense, packed, ragged and batch-first input alike.
//
// A row is one sequence of the batch. The tiled engine numbers rows by length: row 0 is the
// longest. So the live rows of a step, those that have not ended, are always the rows [0,
// live_rows(t)). Tensors [B,...] have a row at batch_index(row), and tensors [R,...] or [T,B,...]
// have its element of step t at flat_index(t, row).
#pragma once
#include <c10/util/SmallVector.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <numeric>
#include <vector>

#include "core/layer_call.h"
#include "cpu/dtypes.h"
#include "parts.h"
#include "pointers.h"

namespace fastlstm {

// Like tensor.to(dtype), but without the dispatcher if the tensor has the dtype.
inline Tensor as_dtype(const Tensor& tensor, at::ScalarType dtype) {
  return tensor.scalar_type() == dtype ? tensor : tensor.to(dtype);
}

// Returns a pointer to direction d of a contiguous tensor [D,...], or nullptr if it is undefined.
template <typename T>
T* direction_data(const Tensor& tensor, int64_t d) {
  if (!tensor.defined()) return nullptr;
  return const_cast<T*>(const_data<T>(tensor)) + d * tensor.stride(0);
}

class SortedRows {
 public:
  explicit SortedRows(const LayerCall& layer)
      : steps_(layer.steps.expect_int()),
        batch_(layer.batch.expect_int()),
        packed_(layer.packed()),
        batch_index_(batch_),
        length_(batch_),
        live_rows_(steps_, batch_),
        offset_(steps_) {
    std::iota(batch_index_.begin(), batch_index_.end(), 0);
    if (packed_) {
      const Tensor sizes = layer.batch_sizes->contiguous();
      std::copy_n(sizes.const_data_ptr<int64_t>(), steps_, live_rows_.begin());
    } else if (layer.lengths) {
      sort(layer.lengths->contiguous());
      has_padding_ = live_rows_.back() != batch_;
    }
    std::exclusive_scan(live_rows_.begin(), live_rows_.end(), offset_.begin(), int64_t(0));
    for (int64_t t = steps_ - 1, row = 0; t >= 0; --t)
      for (; row < live_rows_[t]; ++row) length_[row] = t + 1;
    if (layer.reset) reset_tensor_ = layer.reset->contiguous();
    reset_ = data_or_null<bool>(reset_tensor_);
  }
  SortedRows(const SortedRows&) = delete;

  int64_t steps() const { return steps_; }
  int64_t batch() const { return batch_; }
  int64_t live_rows(int64_t t) const { return live_rows_[t]; }
  // Whether padded input has positions after the end of a row, to which no step writes.
  bool has_padding() const { return has_padding_; }
  int64_t batch_index(int64_t row) const { return batch_index_[row]; }
  int64_t length(int64_t row) const { return length_[row]; }  // 0 for a row without steps
  int64_t flat_index(int64_t t, int64_t row) const {
    return packed_ ? offset_[t] + row : t * batch_ + batch_index_[row];
  }
  // Calls body(row) for the live rows of step t that one of several row groups has. If all rows are
  // equally long, a group has neighbors, so that threads seldom write to the same cache line.
  // Otherwise a group has every `groups`-th row, so that long and short rows spread evenly.
  void for_rows_of_group(int64_t t, int64_t group, int64_t groups, const auto& body) const {
    const bool has_neighbors = live_rows_.back() == batch_;
    const Range rows = has_neighbors ? part_of(batch_, group, groups) : Range{group, live_rows_[t]};
    for (int64_t row = rows.begin; row < rows.end; row += has_neighbors ? 1 : groups) body(row);
  }
  bool is_reset(int64_t t, int64_t row) const {
    return reset_ && reset_[t * batch_ + batch_index_[row]];
  }

 private:
  void sort(const Tensor& lengths) {
    const int64_t* const length = lengths.const_data_ptr<int64_t>();
    std::ranges::stable_sort(batch_index_, std::greater(), [&](int64_t b) { return length[b]; });
    for (int64_t t = 0; int64_t& live : live_rows_) {
      const auto is_live = [&](int64_t b) { return length[b] > t; };
      live = std::ranges::partition_point(batch_index_, is_live) - batch_index_.begin();
      ++t;
    }
  }

  using Indices = c10::SmallVector<int64_t, 16>;  // without malloc, which is slow for a single step

  int64_t steps_, batch_;
  bool packed_, has_padding_ = false;
  Indices batch_index_, length_;  // [B]
  Indices live_rows_, offset_;    // [T]; offset_: the flat index of row 0 of packed data
  Tensor reset_tensor_;           // the owner of reset_
  const bool* reset_;             // [T,B], or nullptr
};

// The order in which a pass, forward or backward, of one direction visits the time steps.
struct StepOrder {
  const SortedRows& rows;
  const bool reverse, backward;  // whether it is the reverse direction, and the backward pass

  // Converts k, which counts the steps of the pass, to the time step t, and a time step t to its k.
  int64_t time_or_k(int64_t x) const { return reverse != backward ? rows.steps() - 1 - x : x; }
  // The time steps of a row that the forward pass visits first and last.
  int64_t first_time(int64_t row) const { return reverse ? rows.length(row) - 1 : 0; }
  int64_t last_time(int64_t row) const { return reverse ? 0 : rows.length(row) - 1; }
  // The time steps that the forward pass visits before and after t.
  int64_t time_before(int64_t t) const { return reverse ? t + 1 : t - 1; }
  int64_t time_after(int64_t t) const { return reverse ? t - 1 : t + 1; }

  // Returns pointer_to(t, row) for the live rows of the steps k of a chunk.
  auto live_pointers(const Range& chunk, const auto& pointer_to) const {
    std::vector<decltype(pointer_to(0, 0))> pointers;
    for (int64_t k = chunk.begin; k < chunk.end; ++k)
      for (int64_t row = 0; row < rows.live_rows(time_or_k(k)); ++row)
        pointers.push_back(pointer_to(time_or_k(k), row));
    return pointers;
  }
};

// The rows of a sequence [T,B,size] or [R,size], such as the input. Its memory is used directly if
// the elements of a row lie together, and a contiguous copy is used otherwise.
template <typename T>
class SequenceRows {
 public:
  SequenceRows(const Tensor& tensor, const SortedRows& rows)
      : tensor_(tensor.stride(-1) == 1 || tensor.size(-1) == 1 ? tensor : tensor.contiguous()),
        rows_(rows) {}
  T* at(int64_t t, int64_t row) const {  // [size]
    return tensor_.dim() == 3 ? data_ + t * step_stride_ + rows_.batch_index(row) * row_stride_
                              : data_ + rows_.flat_index(t, row) * row_stride_;
  }

 private:
  Tensor tensor_;
  const SortedRows& rows_;
  T* data_ = const_cast<T*>(const_data<T>(tensor_));
  int64_t step_stride_ = tensor_.stride(0);  // of padded input
  int64_t row_stride_ = tensor_.stride(-2);
};

// A row of zeros in place of a missing row. Code that skips zeros recognizes it by its address.
template <typename T>
class Zeros {
 public:
  explicit Zeros(int64_t size) : states_(size) {}
  // The zeros as values of T: zero has only 0 bits in every dtype.
  const T* values() const { return reinterpret_cast<const T*>(states_.data()); }
  const State_t<T>* states() const { return states_.data(); }

 private:
  std::vector<State_t<T>> states_;
};

// Finds the state before a step of one direction (csrc/README.md, "Rules").
template <typename T>
struct PreviousState {
  using A = State_t<T>;
  const LayerCall& layer;
  const StepOrder& order;
  const int64_t d;        // the direction
  const T* const output;  // [R,P] of the direction; rows lie D * P elements apart
  const A* const cells;   // [R,H] of the direction, or nullptr if cells are not saved
  const A* const last_c;  // [B,H], the last c of each row; read if there are no cells
  const Zeros<T>& zeros;
  const Sizes sizes = layer.sizes();
  // Contiguous; c_0 in the dtype of the state.
  const Tensor h_0_tensor = layer.h_0.contiguous(),
               c_0_tensor =
                   as_dtype(layer.c_0, state_dtype(layer.input.scalar_type())).contiguous();
  const T* const h_0 = direction_data<const T>(h_0_tensor, d);  // [B,P]
  const A* const c_0 = direction_data<const A>(c_0_tensor, d);  // [B,H]
  const bool h_0_is_zero = is_zero(h_0, sizes.batch* sizes.output_size);

  struct State {
    const T* h;  // [P]
    const A* c;  // [H]
  };
  // If all bits of h_0 are zero, h is zeros.values() at the first step. The product of that step
  // with W_hh is then skipped.
  State at(int64_t t, int64_t row) const {
    const SortedRows& rows = order.rows;
    if (rows.is_reset(t, row)) return {zeros.values(), zeros.states()};
    const int64_t b = rows.batch_index(row), H = sizes.hidden_size, P = sizes.output_size;
    if (t == order.first_time(row))
      return {h_0_is_zero ? zeros.values() : h_0 + b * P, c_0 + b * H};
    const int64_t before = rows.flat_index(order.time_before(t), row);
    return {output + before * sizes.directions * P, cells ? cells + before * H : last_c + b * H};
  }

 private:
  static bool is_zero(const T* values, int64_t count) {
    const auto* const bytes = reinterpret_cast<const char*>(values);
    const size_t size = count * sizeof(T);
    return size > 0 && bytes[0] == 0 && std::memcmp(bytes, bytes + 1, size - 1) == 0;
  }
};

}  // namespace fastlstm
