#include <algorithm>
#include <optional>
#include <type_traits>

#include "../differentiable.h"
#include "../stepwise.h"
#include "masks.h"
#include "packed_matrix.h"
#include "rows.h"
#include "tiled.h"
#include "walk.h"

namespace fastlstm {
namespace {

// Activated gates, made again: the forward tiles on many rows at once, since every h_{t-1} is
// known; what they say of c and h is thrown away. The bits are those of the walk, unless the walk
// ran in float32 on 16-bit input: then h is rounded here and was not there.
template <typename T>
class Gatemaker {
  using A = State_t<T>;

 public:
  explicit Gatemaker(const Direction& w)
      : hidden_(w.w_ih.size(0) / 4),
        w_ih_(row_pointers(const_data<T>(w.w_ih.contiguous()), 4 * hidden_, w.w_ih.size(1)).data(),
              true, 0, w.w_ih.size(1), 4 * hidden_, 1),
        w_hh_(const_data<T>(w.w_hh.contiguous()), hidden_, hidden_) {
    const auto state = state_dtype(w.w_ih.scalar_type());
    if (w.b_ih.defined()) bias_ = w.b_ih.to(state) + w.b_hh.to(state);
  }

  // Rows x [I] and h_prev [H] into rows of gates [4H].
  void operator()(const std::vector<const T*>& x, const std::vector<const T*>& h_prev,
                  const std::vector<T*>& gates, const T* zeros) const {
    const int64_t rows = gates.size();
    std::vector<A> sums;
    std::vector<A*> x_gates;
    if constexpr (std::is_same_v<T, A>) {
      x_gates = gates;
    } else {
      sums.resize(rows * 4 * hidden_);
      x_gates = row_pointers(sums.data(), rows, 4 * hidden_);
    }
    multiply<T>(x, w_ih_, x_gates, false, bias_.defined() ? const_data<A>(bias_) : nullptr);
    const auto& kernels = tiled_kernels<T>();
    constexpr int64_t kWorthAThread = 1 << 17;  // multiply-adds
    const int64_t grain = 1 + kWorthAThread / (4 * hidden_ * hidden_);
    at::parallel_for(0, rows, grain, [&](int64_t first, int64_t last) {
      const std::vector<A> c_prev(hidden_, A(0));
      std::vector<A> c(hidden_);
      std::vector<T> h(hidden_);
      std::vector<ForwardRow<T, A>> made;
      for (int64_t r = first; r < last; ++r)
        made.push_back({h_prev[r], x_gates[r], gates[r], c_prev.data(), c.data(), h.data()});
      for (int64_t unit = 0; unit < hidden_; unit += kernels.lanes)
        kernels.forward(made.data(), made.size(), hidden_, w_hh_.tile(unit / kernels.lanes), unit,
                        std::min<int64_t>(kernels.lanes, hidden_ - unit), hidden_, zeros);
    });
  }

 private:
  int64_t hidden_;
  PackedMatrix<T> w_ih_;
  PackedGates<T> w_hh_;
  Tensor bias_;
};

}  // namespace

// dL/dh_t before zoneout of some rows, this group's share of the columns: what comes from outside,
// and from the next step through W_hh and through zoneout.
template <typename T, typename A>
static void sum_d_h(const std::vector<BackwardRow<T, A>>& row, int64_t count,
                    const PackedMatrix<T>& w_hh, int64_t group, int64_t groups,
                    std::vector<const T*>& next, const std::vector<T*>& d_h) {
  for (int64_t r = 0; r < count; ++r) next[r] = row[r].d_gates_next;
  if constexpr (std::is_same_v<T, A>) {  // bfloat16 comes here as float32
    multiply_share(next.data(), count, w_hh, group, groups, d_h.data());
    const auto [begin, end] = w_hh.shared_columns(group, groups);
    for (int64_t r = 0; r < count; ++r) {
      if (row[r].h_mask)
        for (int64_t n = begin; n < end; ++n) d_h[r][n] *= row[r].h_mask[n];
      // Last: the small terms are added to each other first.
      for (int64_t n = begin; n < end; ++n) d_h[r][n] += row[r].d_output[n] + row[r].d_h_n[n];
      if (!row[r].zoneout_h) continue;
      for (int64_t n = begin; n < end; ++n) {
        d_h[r][n] += row[r].kept_dh[n];
        const T kept = zoneout_backward(row[r].zoneout_h[n], d_h[r][n]);
        row[r].kept_dh[n] = row[r].reset ? T(0) : kept;
      }
    }
  }
}

template <typename T>
BackwardResult tiled_backward(const Layer& layer, const Saved& saved, const OutputGrads& grads,
                              bool input_needs_grad, bool state_needs_grad, bool per_row) {
  using A = State_t<T>;
  const auto& kernels = tiled_kernels<T>();
  const Rows rows(layer);
  const int64_t directions = layer.num_directions(), batch = rows.batch();
  const int64_t flat_rows = layer.flat_rows.expect_int(), hidden = layer.hidden_size.expect_int();
  const int64_t input_size = layer.input_size.expect_int(), out = layer.output_size.expect_int();
  const auto options = layer.input.options();
  const auto state_options = options.dtype(state_dtype(layer.input.scalar_type()));
  const bool padding = rows.total() < flat_rows;

  const Tensor output = saved.output.contiguous(), cells = saved.cells.contiguous();
  const bool recompute = !saved.gates.defined();
  const Tensor gates = recompute ? Tensor() : saved.gates.contiguous();
  const auto contiguous = [](const Tensor& t) { return t.defined() ? t.contiguous() : t; };
  const Tensor d_output = contiguous(grads.output), d_h_n = contiguous(grads.h_n);
  const Tensor d_cells = contiguous(grads.cells);
  const Tensor h_0 = layer.h_0.contiguous(), c_0 = layer.c_0.to(state_options).contiguous();
  const Sequence<const T> x(layer.input, rows);
  const MaskRows<T> h_mask(layer.h_mask);
  const MaskRows<T> zoneout_h(layer.zoneout_h), zoneout_c(layer.zoneout_c);

  Tensor grad_input = !input_needs_grad ? at::empty({0}, options)
                      : padding         ? at::zeros(layer.input.sizes(), options)
                                        : at::empty(layer.input.sizes(), options);
  Tensor grad_h_0 = d_h_n.defined() ? d_h_n.clone() : at::zeros_like(h_0);
  Tensor grad_c_0 = grads.c_n.defined()
                        ? grads.c_n.to(state_options, false, /*copy=*/true).contiguous()
                        : at::zeros_like(c_0);
  // Steps whose gradients are walked, then multiplied while they are in cache: more of them with
  // larger weights, whose gradients every chunk reads and writes.
  constexpr int64_t kChunkBytes = sizeof(T) == 8 ? 3 << 17 : 1 << 20;
  const int64_t chunk_rows =
      std::max<int64_t>(kChunkBytes / (4 * hidden * sizeof(T)), (input_size + hidden) / 2);
  const int64_t chunk_steps =
      std::clamp<int64_t>(chunk_rows / std::max<int64_t>(batch, 1), 1, rows.steps());
  const Tensor ring = scratch<T>(per_row ? 0 : (chunk_steps + 1) * batch * 4 * hidden);
  // With a projection a step has a phase before it: dL/dh_t in full, which W_hr then takes to the
  // cells. The chunk's dL/dh_t, and o * tanh(c) of all steps, are what W_hr's gradient needs.
  const int64_t phases = layer.projects() ? 2 : 1;
  const Tensor d_h = scratch<T>(layer.projects() ? chunk_steps * batch * out : 0);
  const Tensor masked_h = scratch<T>(layer.h_mask ? chunk_steps * batch * out : 0);
  const std::vector<T> zeros(4 * hidden, T(A(0)));
  const std::vector<A> zero_c(hidden, A(0));
  const ThreadGrid grid = thread_grid(rows, hidden, kernels.lanes, sizeof(T));
  PerMember<BackwardRow<T, A>> made_rows(grid, batch);
  PerMember<const T*> next_rows(grid, layer.projects() ? batch : 0);
  PerMember<T*> d_h_rows(grid, layer.projects() ? batch : 0);
  std::optional<Sequence<T>> dx;
  if (input_needs_grad) dx.emplace(grad_input, rows);
  std::vector<Tensor> grad_weights;

  for (int64_t d = 0; d < directions; ++d) {
    const Direction& w = layer.directions[d];
    const bool reverse = d == 1;
    const Tensor w_hh = w.w_hh.contiguous(), w_ih = w.w_ih.contiguous();
    const PackedMatrix<T> packed_w_hh(row_pointers(const_data<T>(w_hh), 4 * hidden, out).data(),
                                      false, 0, 4 * hidden, out, grid.unit_groups);
    const Tensor w_hr = layer.projects() ? w.w_hr.contiguous() : Tensor();
    std::optional<PackedMatrix<T>> packed_w_hr;
    Tensor unprojected;
    if (layer.projects()) {
      packed_w_hr.emplace(row_pointers(const_data<T>(w_hr), out, hidden).data(), false, 0, out,
                          hidden, grid.unit_groups);
      const Tensor all_gates = gates.view({directions, flat_rows, 4 * hidden})[d];
      const Tensor c =
          stepwise::fresh_cells(layer, d, all_gates, cells.view({directions, flat_rows, hidden})[d],
                                c_0[d], walk(layer, reverse));
      unprojected = cell_output(all_gates.narrow(1, 3 * hidden, hidden), c);
    }
    const auto at_or_zeros = [&](const Tensor& tensor, int64_t offset) {
      return tensor.defined() ? const_data<T>(tensor) + offset : zeros.data();
    };
    const T* const y = const_data<T>(output) + d * out;
    const A* const saved_cells = const_data<A>(cells) + d * flat_rows * hidden;
    const T* const saved_gates =
        recompute ? nullptr : const_data<T>(gates) + d * flat_rows * 4 * hidden;
    A* const dc_state = data<A>(grad_c_0[d]);
    // What zoneout has let through to h of the step before, or to h_0.
    const Tensor kept_dh = at::zeros({layer.zoneout_h ? batch : 0, out}, state_options);
    T* const dh_first = data<T>(grad_h_0[d]);
    const FirstRows<T> h_first(const_data<T>(h_0[d]), rows, out, zeros.data());
    const A* const c_first = const_data<A>(c_0[d]);
    const auto before = [&](int64_t t, int64_t row) {
      return rows.flat(reverse ? t + 1 : t - 1, row);
    };
    Tensor grad_w_ih = at::empty({4 * hidden, input_size}, state_options);
    Tensor grad_w_hh = at::empty({4 * hidden, out}, state_options);
    Tensor grad_w_hr = layer.projects() ? at::empty({out, hidden}, state_options) : Tensor();
    Tensor grad_bias = layer.has_bias() ? at::empty({4 * hidden}, state_options) : Tensor();
    std::optional<PackedMatrix<T>> packed_w_ih;
    if (input_needs_grad)
      packed_w_ih.emplace(row_pointers(const_data<T>(w_ih), 4 * hidden, input_size).data(), false,
                          0, 4 * hidden, input_size, 1);

    // d_gates of all steps, or of those in hand and the one before them (later in time), as a ring.
    const Tensor kept = !per_row  ? Tensor()
                        : padding ? at::zeros_like(gates[d])
                                  : at::empty_like(gates[d]);
    T* const d_gates = data<T>(per_row ? kept : ring);
    const auto d_gates_at = [&](int64_t t, int64_t row) {
      if (per_row) return d_gates + rows.flat(t, row) * 4 * hidden;
      const int64_t k = rows.steps() - 1 - rows.step(t, reverse);
      return d_gates + (k % (chunk_steps + 1) * batch + row) * 4 * hidden;
    };
    const auto d_h_at = [&](int64_t t, int64_t row) {
      const int64_t k = rows.steps() - 1 - rows.step(t, reverse);
      return data<T>(d_h) + (k % chunk_steps * batch + row) * out;
    };
    const auto make_row = [&](int64_t t, int64_t row) {
      const bool first = t == rows.first_step(row, reverse);
      const bool last = t == rows.last_step(row, reverse);
      const int64_t b = rows.batch_index(row), flat = rows.flat(t, row);
      const int64_t next = reverse ? t - 1 : t + 1;
      BackwardRow<T, A> made;
      made.reset = rows.is_reset(t, row);
      made.d_gates_next = last || rows.is_reset(next, row) ? zeros.data() : d_gates_at(next, row);
      made.d_output = at_or_zeros(d_output, (flat * directions + d) * out);
      made.d_h_n = last ? at_or_zeros(d_h_n, (d * batch + b) * out) : zeros.data();
      made.d_cells = d_cells.defined() ? const_data<A>(d_cells) + (d * flat_rows + flat) * hidden
                                       : zero_c.data();
      // Gates that were not saved are made where their gradient takes their place.
      made.gates = recompute ? d_gates_at(t, row) : saved_gates + flat * 4 * hidden;
      made.c = saved_cells + flat * hidden;
      made.c_prev = made.reset ? zero_c.data()
                    : first    ? c_first + b * hidden
                               : saved_cells + before(t, row) * hidden;
      made.dc = dc_state + b * hidden;
      made.d_gates = d_gates_at(t, row);
      made.h_mask = h_mask.at(d * batch + b);
      made.zoneout_h = zoneout_h.at(d * flat_rows + flat);
      made.zoneout_c = zoneout_c.at(d * flat_rows + flat);
      made.kept_dh = made.zoneout_h ? data<A>(kept_dh) + b * out : nullptr;
      return made;
    };
    // The matrix that takes a gradient to dL/d(o tanh c): from the next step's gates, or from h_t.
    const PackedMatrix<T>& to_cells = packed_w_hr ? *packed_w_hr : packed_w_hh;
    const auto h_prev_at = [&](int64_t t, int64_t row) -> const T* {
      if (rows.is_reset(t, row)) return zeros.data();
      if (t == rows.first_step(row, reverse)) return h_first(row);
      return y + before(t, row) * directions * out;
    };
    std::optional<Gatemaker<T>> make_gates;
    if (recompute) make_gates.emplace(w);
    for (int64_t begin = 0; begin < rows.steps(); begin += chunk_steps) {
      const int64_t end = std::min(begin + chunk_steps, rows.steps());
      const auto all = [&](const auto& find) {
        return live_rows<const T*>(rows, !reverse, begin, end, find);
      };
      const auto x_rows = all([&](int64_t t, int64_t row) { return x.at(t, row); });
      auto h_prev_rows = all(h_prev_at);
      if (layer.h_mask) {
        const auto mask_rows =
            all([&](int64_t, int64_t row) { return h_mask.at(d * batch + rows.batch_index(row)); });
        at::parallel_for(0, h_prev_rows.size(), 1 + (1 << 15) / out, [&](int64_t r, int64_t last) {
          for (; r < last; ++r)
            h_prev_rows[r] = masked(h_prev_rows[r], mask_rows[r], out, data<T>(masked_h) + r * out);
        });
      }
      if (recompute)
        (*make_gates)(x_rows, h_prev_rows, live_rows<T*>(rows, !reverse, begin, end, d_gates_at),
                      zeros.data());
      walk_with_threads(
          grid, begin * phases, end * phases,
          [&](int64_t k, int64_t unit_group, int64_t row_group) {
            const int64_t t = rows.step(k / phases, !reverse);
            auto& made = made_rows.of(unit_group, row_group);
            const int64_t count = rows_of_group(rows.live(t), row_group, grid.row_groups, made,
                                                [&](int64_t row) { return make_row(t, row); });
            if (layer.projects()) {
              auto& d_h_t = d_h_rows.of(unit_group, row_group);
              rows_of_group(rows.live(t), row_group, grid.row_groups, d_h_t,
                            [&](int64_t row) { return d_h_at(t, row); });
              if (k % phases == 0)
                return sum_d_h(made, count, packed_w_hh, unit_group, grid.unit_groups,
                               next_rows.of(unit_group, row_group), d_h_t);
              for (int64_t r = 0; r < count; ++r)
                made[r].d_gates_next = d_h_t[r], made[r].d_output = made[r].d_h_n = zeros.data(),
                made[r].h_mask = made[r].zoneout_h = nullptr;
            }
            const auto [first, last] = to_cells.share(unit_group, grid.unit_groups);
            for (int64_t p = first; p < last; ++p)
              kernels.backward(made.data(), count, to_cells.K(), to_cells.panel(p),
                               to_cells.panels()[p], hidden, zeros.data());
          });

      while (!h_prev_rows.empty() && h_prev_rows.back() == zeros.data()) h_prev_rows.pop_back();
      const std::vector<const T*> d_gates_rows = all(d_gates_at);
      if (!per_row)
        multiply_transposed<T>(
            d_gates_rows, 4 * hidden,
            {{x_rows, input_size, data<A>(grad_w_ih)}, {h_prev_rows, out, data<A>(grad_w_hh)}},
            grad_bias.defined() ? data<A>(grad_bias) : nullptr, begin > 0);
      if (layer.projects() && !per_row)
        multiply_transposed<T>(all(d_h_at), out,
                               {{all([&](int64_t t, int64_t row) {
                                   return const_data<T>(unprojected) + rows.flat(t, row) * hidden;
                                 }),
                                 hidden, data<A>(grad_w_hr)}},
                               nullptr, begin > 0);
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
        T* const to = dh_first + rows.batch_index(row) * out;
        if (rows.is_reset(t, row)) {
          std::fill_n(to, out, T(A(0)));
        } else {
          through.push_back(d_gates_at(t, row));
          into.push_back(to);
        }
      }
      multiply_rounded<T>(through, packed_w_hh, into, false);
    }
    if (state_needs_grad && (layer.h_mask || layer.zoneout_h))
      for (int64_t row = 0; row < rows.live(0); ++row) {
        const int64_t b = rows.batch_index(row);
        const T* const mask = h_mask.at(d * batch + b);
        const A* const kept = layer.zoneout_h ? data<A>(kept_dh) + b * out : nullptr;
        T* const to = dh_first + b * out;
        for (int64_t n = 0; n < out; ++n)
          to[n] = T((mask ? A(mask[n]) : A(1)) * A(to[n]) + (kept ? kept[n] : A(0)));
      }
    if (per_row) {
      grad_weights.push_back(kept);
      continue;
    }
    for (const Tensor& gradient : {grad_w_ih, grad_w_hh, grad_bias, grad_w_hr})
      if (gradient.defined()) grad_weights.push_back(gradient.to(options.dtype()));
  }
  return {grad_input, grad_h_0, grad_c_0.to(options.dtype()), grad_weights};
}

template BackwardResult tiled_backward<float>(const Layer&, const Saved&, const OutputGrads&, bool,
                                              bool, bool);
template BackwardResult tiled_backward<double>(const Layer&, const Saved&, const OutputGrads&, bool,
                                               bool, bool);
template BackwardResult tiled_backward<bfloat16>(const Layer&, const Saved&, const OutputGrads&,
                                                 bool, bool, bool);

}  // namespace fastlstm
