#include "tiled.h"

#include <ATen/Parallel.h>
#ifdef _OPENMP
#include <omp.h>
#endif

#include <algorithm>
#include <cstring>
#include <numeric>
#include <type_traits>

#include "packed_matrix.h"
#include "plan.h"

namespace fastlstm {
namespace {

template <typename T>
T* data(const Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}
template <typename T>
const T* const_data(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}

// The live rows of every step, sorted by length, and where each of them lies among the flat rows.
class Rows {
 public:
  explicit Rows(const Layer& layer)
      : steps_(layer.steps.expect_int()),
        batch_(layer.batch.expect_int()),
        packed_(layer.packed()),
        order_(batch_),
        length_(batch_, steps_),
        live_(steps_, batch_),
        offset_(steps_) {
    std::iota(order_.begin(), order_.end(), 0);
    if (packed_) {
      const Tensor sizes = layer.batch_sizes->contiguous();
      std::copy_n(sizes.const_data_ptr<int64_t>(), steps_, live_.begin());
    } else if (layer.lengths) {
      const Tensor lengths = layer.lengths->contiguous();
      const int64_t* length = lengths.const_data_ptr<int64_t>();
      std::stable_sort(order_.begin(), order_.end(),
                       [length](int64_t a, int64_t b) { return length[a] > length[b]; });
      for (int64_t t = 0, rows = batch_; t < steps_; ++t) {
        while (rows > 0 && length[order_[rows - 1]] <= t) --rows;
        live_[t] = rows;
      }
    }
    for (int64_t t = 0, offset = 0; t < steps_; ++t) offset_[t] = offset, offset += live_[t];
    for (int64_t t = steps_ - 1, row = 0; t >= 0; --t)
      for (; row < live_[t]; ++row) length_[row] = t + 1;
    for (int64_t row = live_[0]; row < batch_; ++row) length_[row] = 0;
    if (layer.reset) {
      reset_tensor_ = layer.reset->contiguous();
      reset_ = reset_tensor_.const_data_ptr<bool>();
    }
  }

  int64_t steps() const { return steps_; }
  int64_t batch() const { return batch_; }
  int64_t live(int64_t t) const { return live_[t]; }
  int64_t total() const { return offset_.back() + live_.back(); }
  // Batch index of a row, for everything of shape [B,...].
  int64_t batch_index(int64_t row) const { return order_[row]; }
  int64_t length(int64_t row) const { return length_[row]; }
  int64_t flat(int64_t t, int64_t row) const {
    return packed_ ? offset_[t] + row : t * batch_ + order_[row];
  }
  bool is_reset(int64_t t, int64_t row) const { return reset_ && reset_[t * batch_ + order_[row]]; }
  int64_t first_step(int64_t row, bool reverse) const { return reverse ? length_[row] - 1 : 0; }
  int64_t last_step(int64_t row, bool reverse) const { return reverse ? 0 : length_[row] - 1; }
  // The k-th step of the walk.
  int64_t step(int64_t k, bool reverse) const { return reverse ? steps_ - 1 - k : k; }

 private:
  int64_t steps_, batch_;
  bool packed_;
  std::vector<int64_t> order_, length_, live_, offset_;
  Tensor reset_tensor_;
  const bool* reset_ = nullptr;
};

// The sequence [T,B,size] or [R,size] of a tensor whose last dimension is contiguous.
template <typename T>
class Sequence {
 public:
  explicit Sequence(const Tensor& tensor, const Rows& rows)
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
  const Rows& rows_;
  int64_t step_stride_, row_stride_;
};

// Pointers to the live rows of steps [begin, end) of the walk, in walking order.
template <typename Pointer, typename Find>
std::vector<Pointer> live_rows(const Rows& rows, bool reverse, int64_t begin, int64_t end,
                               const Find& find) {
  std::vector<Pointer> pointers;
  for (int64_t k = begin; k < end; ++k) {
    const int64_t t = rows.step(k, reverse);
    for (int64_t row = 0; row < rows.live(t); ++row) pointers.push_back(find(t, row));
  }
  return pointers;
}

// Walks steps [begin, end): work(k, unit group, row group) for every member of the grid, a barrier
// after each step if units are divided. Correct whatever number of threads there really is.
template <typename Work>
void walk_with_threads(const ThreadGrid& grid, int64_t begin, int64_t end, const Work& work) {
  const auto member = [&](int64_t k, int64_t v) {
    work(k, v % grid.unit_groups, v / grid.unit_groups);
  };
#ifdef _OPENMP
  if (grid.threads() > 1 && !at::in_parallel_region()) {
#pragma omp parallel num_threads(static_cast<int>(grid.threads()))
    {
      const int64_t id = omp_get_thread_num(), team = omp_get_num_threads();
      if (grid.unit_groups == 1) {
        for (int64_t v = id; v < grid.threads(); v += team)
          for (int64_t k = begin; k < end; ++k) member(k, v);
      } else {
        for (int64_t k = begin; k < end; ++k) {
          for (int64_t v = id; v < grid.threads(); v += team) member(k, v);
#pragma omp barrier
        }
      }
    }
    return;
  }
#endif
  for (int64_t k = begin; k < end; ++k)
    for (int64_t v = 0; v < grid.threads(); ++v) member(k, v);
}

ThreadGrid thread_grid(const Rows& rows, int64_t hidden, int64_t lanes, int64_t element_size) {
  // Below this many multiply-adds, waking other threads costs more than they help.
  constexpr int64_t kWorthAThread = 1 << 21;
  const int64_t work = rows.total() * 4 * hidden * hidden;
  const int64_t threads = std::min<int64_t>(at::get_num_threads(), 1 + work / kWorthAThread);
  return plan_threads(at::in_parallel_region() ? 1 : threads, rows.batch(), hidden, lanes,
                      element_size);
}

// Rows g, g + groups, ... of a step: with rows sorted by length, every group gets its share.
template <typename Row, typename Make>
int64_t rows_of_group(int64_t live, int64_t group, int64_t groups, std::vector<Row>& made,
                      const Make& make) {
  int64_t count = 0;
  for (int64_t row = group; row < live; row += groups) made[count++] = make(row);
  return count;
}

// A dense batch of one step without anything to save: decoding, reinforcement learning.
template <typename T>
ForwardResult one_step_forward(const Layer& layer) {
  const int64_t directions = layer.num_directions(), batch = layer.batch.expect_int();
  const int64_t input_size = layer.input_size.expect_int();
  const int64_t hidden = layer.hidden_size.expect_int();
  const auto options = layer.input.options();
  const Tensor x = layer.input.contiguous(), h_0 = layer.h_0.contiguous();
  const Tensor c_0 = layer.c_0.contiguous();
  Tensor output = at::empty({1, batch, directions * hidden}, options);
  Tensor h_n = directions == 1 ? Tensor() : at::empty({directions, batch, hidden}, options);
  Tensor c_n = at::empty({directions, batch, hidden}, options);

  std::vector<OneStepRow<T>> rows(batch);
  for (int64_t d = 0; d < directions; ++d) {
    const Direction& w = layer.directions[d];
    const Tensor w_ih = w.w_ih.contiguous(), w_hh = w.w_hh.contiguous();
    const Tensor b_ih = layer.has_bias() ? w.b_ih.contiguous() : Tensor();
    const Tensor b_hh = layer.has_bias() ? w.b_hh.contiguous() : Tensor();
    const OneStep<T> step{const_data<T>(w_ih),
                          const_data<T>(w_hh),
                          layer.has_bias() ? const_data<T>(b_ih) : nullptr,
                          layer.has_bias() ? const_data<T>(b_hh) : nullptr,
                          input_size,
                          hidden};
    for (int64_t b = 0; b < batch; ++b)
      rows[b] = {const_data<T>(x) + b * input_size, const_data<T>(h_0) + (d * batch + b) * hidden,
                 const_data<T>(c_0) + (d * batch + b) * hidden,
                 data<T>(output) + (b * directions + d) * hidden,
                 data<T>(c_n) + (d * batch + b) * hidden};
    // Below this many multiply-adds, waking another thread costs more than it helps.
    constexpr int64_t kWorthAThread = 1 << 17;
    const auto& kernels = tiled_kernels<T>();
    const int64_t lanes = kernels.lanes, tiles = (hidden + lanes - 1) / lanes;
    const int64_t per_tile = 4 * lanes * (input_size + hidden) * std::max<int64_t>(batch, 1);
    at::parallel_for(
        0, tiles, (kWorthAThread + per_tile - 1) / per_tile, [&](int64_t first, int64_t last) {
          kernels.one_step(step, rows.data(), batch, first * lanes, std::min(last * lanes, hidden));
        });
    if (directions > 1) h_n[d].copy_(output[0].narrow(1, d * hidden, hidden));
  }
  if (directions == 1) h_n = output.clone();
  return {output, h_n, c_n, at::empty({0}, options), at::empty({0}, options)};
}

}  // namespace

template <typename T>
ForwardResult tiled_forward(const Layer& layer, bool save_cells, bool save_gates) {
  const bool one_step = layer.steps.expect_int() == 1 && !layer.packed() && !layer.lengths &&
                        !layer.reset && !save_cells && !save_gates;
  using A = State_t<T>;
  if constexpr (std::is_same_v<T, A>)
    if (one_step) return one_step_forward<T>(layer);
  const auto& kernels = tiled_kernels<T>();
  const Rows rows(layer);
  const int64_t directions = layer.num_directions(), batch = rows.batch();
  const int64_t flat_rows = layer.flat_rows.expect_int(), hidden = layer.hidden_size.expect_int();
  const int64_t input_size = layer.input_size.expect_int();
  const auto options = layer.input.options();
  const auto state_options = options.dtype(state_dtype(layer.input.scalar_type()));
  const bool padding = rows.total() < flat_rows;  // positions that no step writes

  std::vector<int64_t> shape{flat_rows};
  if (!layer.packed()) shape = {rows.steps(), batch};
  const auto sequence = [&](int64_t size, bool per_direction, const at::TensorOptions& options) {
    std::vector<int64_t> sizes = shape;
    if (per_direction) sizes.insert(sizes.begin(), directions);
    sizes.push_back(size);
    return padding ? at::zeros(sizes, options) : at::empty(sizes, options);
  };
  Tensor output = sequence(directions * hidden, false, options);
  Tensor cells = save_cells ? sequence(hidden, true, state_options) : at::empty({0}, state_options);
  Tensor gates = save_gates ? sequence(4 * hidden, true, options) : at::empty({0}, options);
  Tensor h_n = layer.h_0.clone(at::MemoryFormat::Contiguous);
  Tensor c_n = layer.c_0.to(state_options, false, /*copy=*/true).contiguous();
  const Tensor h_0 = layer.h_0.contiguous(), c_0 = layer.c_0.to(state_options).contiguous();
  const std::vector<T> zero_h(hidden, T(A(0)));
  const std::vector<A> zero_c(hidden, A(0));
  const Sequence<const T> x(layer.input, rows);

  // Steps whose gates are computed from the input at once, then walked while they are in cache.
  constexpr int64_t kChunkBytes = 2 << 20;
  const int64_t chunk_rows = std::max<int64_t>(kChunkBytes / (4 * hidden * sizeof(T)), 1);
  const int64_t chunk_steps =
      std::clamp<int64_t>(chunk_rows / std::max<int64_t>(batch, 1), 1, rows.steps());
  // Where activated gates are kept, in the dtype of the sums, the pre-activations take their place.
  const bool in_place = save_gates && std::is_same_v<T, A>;
  const Tensor chunk_gates =
      in_place ? Tensor() : at::empty({chunk_steps * batch, 4 * hidden}, state_options);
  const ThreadGrid grid = thread_grid(rows, hidden, kernels.lanes, sizeof(T));
  const int64_t tiles = (hidden + kernels.lanes - 1) / kernels.lanes;

  for (int64_t d = 0; d < directions; ++d) {
    const Direction& w = layer.directions[d];
    const bool reverse = d == 1;
    const Tensor w_ih = w.w_ih.contiguous(), w_hh = w.w_hh.contiguous();
    const Tensor bias =
        layer.has_bias() ? w.b_ih.to(state_options) + w.b_hh.to(state_options) : Tensor();
    const PackedMatrix<T> packed_w_ih(
        row_pointers(const_data<T>(w_ih), 4 * hidden, input_size).data(), true, 0, input_size,
        4 * hidden, 1);
    // Columns in the order unit vector, gate, unit: a panel of four vectors is a tile's gates.
    const PackedGates<T> packed_w_hh(const_data<T>(w_hh), hidden, hidden);

    T* const y = data<T>(output) + d * hidden;
    T* const saved_gates = save_gates ? data<T>(gates[d]) : nullptr;
    A* const saved_cells = save_cells ? data<A>(cells[d]) : nullptr;
    A* const c_state = data<A>(c_n[d]);
    T* const h_last = data<T>(h_n[d]);
    const T* const h_first = const_data<T>(h_0[d]);
    const A* const c_first = const_data<A>(c_0[d]);

    for (int64_t begin = 0; begin < rows.steps(); begin += chunk_steps) {
      const int64_t end = std::min(begin + chunk_steps, rows.steps());
      A* const buffer = in_place ? nullptr : data<A>(chunk_gates);
      const auto x_gates_at = [&](int64_t t, int64_t row) {
        if (in_place) return reinterpret_cast<A*>(saved_gates) + rows.flat(t, row) * 4 * hidden;
        const int64_t k = reverse ? rows.steps() - 1 - t : t;
        return buffer + ((k - begin) * batch + row) * 4 * hidden;
      };
      multiply<T>(live_rows<const T*>(rows, reverse, begin, end,
                                      [&](int64_t t, int64_t row) { return x.at(t, row); }),
                  packed_w_ih, live_rows<A*>(rows, reverse, begin, end, x_gates_at), false,
                  layer.has_bias() ? const_data<A>(bias) : nullptr);

      const auto make_row = [&](int64_t t, int64_t row, T* unsaved) {
        const bool first = t == rows.first_step(row, reverse);
        const int64_t b = rows.batch_index(row), flat = rows.flat(t, row);
        const int64_t before = first ? 0 : rows.flat(reverse ? t + 1 : t - 1, row);
        ForwardRow<T, A> made;
        made.x_gates = x_gates_at(t, row);
        made.gates = saved_gates ? saved_gates + flat * 4 * hidden : unsaved;
        made.h = y + flat * directions * hidden;
        made.h_prev = first ? h_first + b * hidden : y + before * directions * hidden;
        made.c = saved_cells ? saved_cells + flat * hidden : c_state + b * hidden;
        made.c_prev = first         ? c_first + b * hidden
                      : saved_cells ? saved_cells + before * hidden
                                    : c_state + b * hidden;
        if (rows.is_reset(t, row)) made.h_prev = zero_h.data(), made.c_prev = zero_c.data();
        return made;
      };
      walk_with_threads(grid, begin, end, [&](int64_t k, int64_t unit_group, int64_t row_group) {
        const int64_t t = rows.step(k, reverse);
        thread_local std::vector<ForwardRow<T, A>> made;
        thread_local std::vector<T> unsaved;
        made.resize(batch);
        unsaved.resize(4 * hidden);
        const int64_t count =
            rows_of_group(rows.live(t), row_group, grid.row_groups, made,
                          [&](int64_t row) { return make_row(t, row, unsaved.data()); });
        const int64_t last = (unit_group + 1) * tiles / grid.unit_groups;
        for (int64_t tile = unit_group * tiles / grid.unit_groups; tile < last; ++tile) {
          const int64_t unit = tile * kernels.lanes;
          kernels.forward(made.data(), count, hidden, packed_w_hh.tile(tile), unit,
                          std::min<int64_t>(kernels.lanes, hidden - unit), hidden);
        }
      });
    }
    for (int64_t row = 0; row < batch; ++row) {
      if (rows.length(row) == 0) continue;
      const int64_t b = rows.batch_index(row), flat = rows.flat(rows.last_step(row, reverse), row);
      std::copy_n(y + flat * directions * hidden, hidden, h_last + b * hidden);
      if (saved_cells) std::copy_n(saved_cells + flat * hidden, hidden, c_state + b * hidden);
    }
  }
  return {output, h_n, c_n.to(options.dtype()), cells, gates};
}

template <typename T>
BackwardResult tiled_backward(const Layer& layer, const Saved& saved, const OutputGrads& grads,
                              bool input_needs_grad, bool state_needs_grad) {
  using A = State_t<T>;
  const auto& kernels = tiled_kernels<T>();
  const Rows rows(layer);
  const int64_t directions = layer.num_directions(), batch = rows.batch();
  const int64_t flat_rows = layer.flat_rows.expect_int(), hidden = layer.hidden_size.expect_int();
  const int64_t input_size = layer.input_size.expect_int();
  const auto options = layer.input.options();
  const auto state_options = options.dtype(state_dtype(layer.input.scalar_type()));
  const bool padding = rows.total() < flat_rows;

  const Tensor output = saved.output.contiguous(), cells = saved.cells.contiguous();
  const Tensor gates = saved.gates.contiguous();
  const auto contiguous = [](const Tensor& t) { return t.defined() ? t.contiguous() : t; };
  const Tensor d_output = contiguous(grads.output), d_h_n = contiguous(grads.h_n);
  const Tensor d_cells = contiguous(grads.cells);
  const Tensor h_0 = layer.h_0.contiguous(), c_0 = layer.c_0.to(state_options).contiguous();
  const Sequence<const T> x(layer.input, rows);

  Tensor grad_input = !input_needs_grad ? at::empty({0}, options)
                      : padding         ? at::zeros(layer.input.sizes(), options)
                                        : at::empty(layer.input.sizes(), options);
  Tensor grad_h_0 = d_h_n.defined() ? d_h_n.clone() : at::zeros_like(h_0);
  Tensor grad_c_0 = grads.c_n.defined()
                        ? grads.c_n.to(state_options, false, /*copy=*/true).contiguous()
                        : at::zeros_like(c_0);
  // Steps whose gradients are walked, then multiplied while they are in cache.
  constexpr int64_t kChunkRows = 1024;
  const int64_t chunk_steps =
      std::clamp<int64_t>(kChunkRows / std::max<int64_t>(batch, 1), 1, rows.steps());
  const Tensor d_gates_tensor = at::empty({(chunk_steps + 1) * batch, 4 * hidden}, options);
  T* const d_gates = data<T>(d_gates_tensor);
  const std::vector<T> zeros(4 * hidden, T(A(0)));
  const std::vector<A> zero_c(hidden, A(0));
  const ThreadGrid grid = thread_grid(rows, hidden, kernels.lanes, sizeof(T));
  std::optional<Sequence<T>> dx;
  if (input_needs_grad) dx.emplace(grad_input, rows);
  std::vector<Tensor> grad_weights;

  for (int64_t d = 0; d < directions; ++d) {
    const Direction& w = layer.directions[d];
    const bool reverse = d == 1;
    const Tensor w_hh = w.w_hh.contiguous(), w_ih = w.w_ih.contiguous();
    const PackedMatrix<T> packed_w_hh(row_pointers(const_data<T>(w_hh), 4 * hidden, hidden).data(),
                                      false, 0, 4 * hidden, hidden, grid.unit_groups);
    const auto at_or_zeros = [&](const Tensor& tensor, int64_t offset) {
      return tensor.defined() ? const_data<T>(tensor) + offset : zeros.data();
    };
    const T* const y = const_data<T>(output) + d * hidden;
    const A* const saved_cells = const_data<A>(cells) + d * flat_rows * hidden;
    const T* const saved_gates = const_data<T>(gates) + d * flat_rows * 4 * hidden;
    A* const dc_state = data<A>(grad_c_0[d]);
    T* const dh_first = data<T>(grad_h_0[d]);
    const T* const h_first = const_data<T>(h_0[d]);
    const A* const c_first = const_data<A>(c_0[d]);
    const auto before = [&](int64_t t, int64_t row) {
      return rows.flat(reverse ? t + 1 : t - 1, row);
    };
    Tensor grad_w_ih = at::empty({4 * hidden, input_size}, state_options);
    Tensor grad_w_hh = at::empty({4 * hidden, hidden}, state_options);
    Tensor grad_bias = layer.has_bias() ? at::empty({4 * hidden}, state_options) : Tensor();
    std::optional<PackedMatrix<T>> packed_w_ih;
    if (input_needs_grad)
      packed_w_ih.emplace(row_pointers(const_data<T>(w_ih), 4 * hidden, input_size).data(), false,
                          0, 4 * hidden, input_size, 1);

    // d_gates of the steps in hand and of the one before them (later in time), as a ring.
    const auto d_gates_at = [&](int64_t t, int64_t row) {
      const int64_t k = rows.steps() - 1 - rows.step(t, reverse);
      return d_gates + (k % (chunk_steps + 1) * batch + row) * 4 * hidden;
    };
    const auto make_row = [&](int64_t t, int64_t row) {
      const bool first = t == rows.first_step(row, reverse);
      const bool last = t == rows.last_step(row, reverse);
      const int64_t b = rows.batch_index(row), flat = rows.flat(t, row);
      const int64_t next = reverse ? t - 1 : t + 1;
      BackwardRow<T, A> made;
      made.reset = rows.is_reset(t, row);
      made.d_gates_next = last || rows.is_reset(next, row) ? nullptr : d_gates_at(next, row);
      made.d_output = at_or_zeros(d_output, (flat * directions + d) * hidden);
      made.d_h_n = last ? at_or_zeros(d_h_n, (d * batch + b) * hidden) : zeros.data();
      made.d_cells = d_cells.defined() ? const_data<A>(d_cells) + (d * flat_rows + flat) * hidden
                                       : zero_c.data();
      made.gates = saved_gates + flat * 4 * hidden;
      made.c = saved_cells + flat * hidden;
      made.c_prev = made.reset ? zero_c.data()
                    : first    ? c_first + b * hidden
                               : saved_cells + before(t, row) * hidden;
      made.dc = dc_state + b * hidden;
      made.d_gates = d_gates_at(t, row);
      return made;
    };
    const int64_t panels = packed_w_hh.panels().size();
    for (int64_t begin = 0; begin < rows.steps(); begin += chunk_steps) {
      const int64_t end = std::min(begin + chunk_steps, rows.steps());
      walk_with_threads(grid, begin, end, [&](int64_t k, int64_t unit_group, int64_t row_group) {
        const int64_t t = rows.step(k, !reverse);
        thread_local std::vector<BackwardRow<T, A>> made;
        made.resize(batch);
        const int64_t count = rows_of_group(rows.live(t), row_group, grid.row_groups, made,
                                            [&](int64_t row) { return make_row(t, row); });
        const int64_t last = (unit_group + 1) * panels / grid.unit_groups;
        for (int64_t p = unit_group * panels / grid.unit_groups; p < last; ++p)
          kernels.backward(made.data(), count, 4 * hidden, packed_w_hh.panel(p),
                           packed_w_hh.panels()[p], hidden, zeros.data());
      });

      const auto all = [&](const auto& find) {
        return live_rows<const T*>(rows, !reverse, begin, end, find);
      };
      const std::vector<const T*> d_gates_rows = all(d_gates_at);
      multiply_transposed<T>(d_gates_rows, 4 * hidden,
                             {{all([&](int64_t t, int64_t row) { return x.at(t, row); }),
                               input_size, data<A>(grad_w_ih)},
                              {all([&](int64_t t, int64_t row) -> const T* {
                                 if (rows.is_reset(t, row)) return zeros.data();
                                 if (t == rows.first_step(row, reverse))
                                   return h_first + rows.batch_index(row) * hidden;
                                 return y + before(t, row) * directions * hidden;
                               }),
                               hidden, data<A>(grad_w_hh)}},
                             begin > 0);
      if (grad_bias.defined()) sum_rows<T>(d_gates_rows, 4 * hidden, data<A>(grad_bias), begin > 0);
      if (input_needs_grad)
        multiply_rounded<T>(d_gates_rows, *packed_w_ih,
                            live_rows<T*>(rows, !reverse, begin, end,
                                          [&](int64_t t, int64_t row) { return dx->at(t, row); }),
                            d > 0);
      if (!state_needs_grad) continue;
      // Into h_0 goes what came back through each row's first step.
      std::vector<const T*> through;
      std::vector<T*> into;
      for (int64_t row = 0; row < rows.live(0); ++row) {
        const int64_t t = rows.first_step(row, reverse);
        const int64_t k = rows.steps() - 1 - rows.step(t, reverse);
        if (k < begin || k >= end) continue;
        T* const to = dh_first + rows.batch_index(row) * hidden;
        if (rows.is_reset(t, row)) {
          std::fill_n(to, hidden, T(A(0)));
        } else {
          through.push_back(d_gates_at(t, row));
          into.push_back(to);
        }
      }
      multiply_rounded<T>(through, packed_w_hh, into, false);
    }
    for (const Tensor& gradient : {grad_w_ih, grad_w_hh, grad_bias})
      if (gradient.defined()) grad_weights.push_back(gradient.to(options.dtype()));
  }
  return {grad_input, grad_h_0, grad_c_0.to(options.dtype()), grad_weights};
}

template ForwardResult tiled_forward<float>(const Layer&, bool, bool);
template ForwardResult tiled_forward<double>(const Layer&, bool, bool);
template ForwardResult tiled_forward<bfloat16>(const Layer&, bool, bool);
template BackwardResult tiled_backward<float>(const Layer&, const Saved&, const OutputGrads&, bool,
                                              bool);
template BackwardResult tiled_backward<double>(const Layer&, const Saved&, const OutputGrads&, bool,
                                               bool);

template BackwardResult tiled_backward<bfloat16>(const Layer&, const Saved&, const OutputGrads&,
                                                 bool, bool);

}  // namespace fastlstm
