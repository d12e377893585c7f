#include <algorithm>
#include <optional>
#include <type_traits>

#include "masks.h"
#include "packed_matrix.h"
#include "rows.h"
#include "tiled.h"
#include "walk.h"

namespace fastlstm {

template <typename T>
ForwardResult tiled_forward(const Layer& layer, bool save_cells, bool save_gates) {
  const bool one_step = layer.steps.expect_int() == 1 && !layer.packed() && !layer.lengths &&
                        !layer.reset && !layer.h_mask && !layer.zones_out() && !save_cells &&
                        !save_gates;
  using A = State_t<T>;
  if (one_step) return one_step_forward<T>(layer);
  const auto& kernels = tiled_kernels<T>();
  const Rows rows(layer);
  const int64_t directions = layer.num_directions(), batch = rows.batch();
  const int64_t flat_rows = layer.flat_rows.expect_int(), hidden = layer.hidden_size.expect_int();
  const int64_t input_size = layer.input_size.expect_int(), out = layer.output_size.expect_int();
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
  Tensor output = sequence(directions * out, false, options);
  Tensor cells = save_cells ? sequence(hidden, true, state_options) : at::empty({0}, state_options);
  Tensor gates = save_gates ? sequence(4 * hidden, true, options) : at::empty({0}, options);
  Tensor h_n = layer.h_0.clone(at::MemoryFormat::Contiguous);
  Tensor c_n = layer.c_0.to(state_options, false, /*copy=*/true).contiguous();
  const Tensor h_0 = layer.h_0.contiguous(), c_0 = layer.c_0.to(state_options).contiguous();
  const std::vector<T> zero_h(out, T(A(0)));
  const std::vector<A> zero_c(hidden, A(0));
  const Sequence<const T> x(layer.input, rows);
  const MaskRows<T> h_mask(layer.h_mask);
  const MaskRows<T> zoneout_h(layer.zoneout_h), zoneout_c(layer.zoneout_c);

  // Steps whose gates are computed from the input at once, then walked while they are in cache.
  constexpr int64_t kChunkBytes = 2 << 20;
  const int64_t chunk_rows = std::max<int64_t>(kChunkBytes / (4 * hidden * sizeof(A)), 1);
  const int64_t chunk_steps =
      std::clamp<int64_t>(chunk_rows / std::max<int64_t>(batch, 1), 1, rows.steps());
  // Where activated gates are kept, in the dtype of the sums, the pre-activations take their place.
  const bool in_place = save_gates && std::is_same_v<T, A>;
  const Tensor chunk_gates = in_place ? Tensor() : scratch<A>(chunk_steps * batch * 4 * hidden);
  const ThreadGrid grid = thread_grid(rows, hidden, kernels.lanes, sizeof(T));
  const int64_t tiles = (hidden + kernels.lanes - 1) / kernels.lanes;
  // With a projection a step has a second phase: from o * tanh(c) of all units to h.
  const int64_t phases = layer.projects() ? 2 : 1;
  const Tensor unprojected = scratch<T>(layer.projects() ? batch * hidden : 0);
  PerMember<ForwardRow<T, A>> made_rows(grid, batch);
  PerMember<const T*> project_from(grid, layer.projects() ? batch : 0);
  PerMember<T*> project_to(grid, layer.projects() ? batch : 0);
  // Every member masks the rows that it reads.
  const Tensor masked_h = scratch<T>(layer.h_mask ? grid.threads() * batch * out : 0);

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
    const PackedGates<T> packed_w_hh(const_data<T>(w_hh), hidden, out);
    const Tensor w_hr = layer.projects() ? w.w_hr.contiguous() : Tensor();
    std::optional<PackedMatrix<T>> packed_w_hr;
    if (layer.projects())
      packed_w_hr.emplace(row_pointers(const_data<T>(w_hr), out, hidden).data(), true, 0, hidden,
                          out, grid.unit_groups);

    T* const y = data<T>(output) + d * out;
    T* const saved_gates = save_gates ? data<T>(gates[d]) : nullptr;
    A* const saved_cells = save_cells ? data<A>(cells[d]) : nullptr;
    A* const c_state = data<A>(c_n[d]);
    T* const h_last = data<T>(h_n[d]);
    const FirstRows<T> h_first(const_data<T>(h_0[d]), rows, out, zero_h.data());
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

      const auto h_prev_at = [&](int64_t t, int64_t row) -> const T* {
        if (rows.is_reset(t, row)) return zero_h.data();
        if (t == rows.first_step(row, reverse)) return h_first(row);
        return y + rows.flat(reverse ? t + 1 : t - 1, row) * directions * out;
      };
      const auto make_row = [&](int64_t t, int64_t row, int64_t member) {
        const bool first = t == rows.first_step(row, reverse);
        const int64_t b = rows.batch_index(row), flat = rows.flat(t, row);
        const int64_t before = first ? 0 : rows.flat(reverse ? t + 1 : t - 1, row);
        ForwardRow<T, A> made;
        made.x_gates = x_gates_at(t, row);
        made.gates = saved_gates ? saved_gates + flat * 4 * hidden : nullptr;
        made.h =
            layer.projects() ? data<T>(unprojected) + row * hidden : y + flat * directions * out;
        made.h_prev = h_prev_at(t, row);
        made.c = saved_cells ? saved_cells + flat * hidden : c_state + b * hidden;
        made.c_prev = first         ? c_first + b * hidden
                      : saved_cells ? saved_cells + before * hidden
                                    : c_state + b * hidden;
        if (rows.is_reset(t, row)) made.c_prev = zero_c.data();
        made.zoneout_c = zoneout_c.at(d * flat_rows + flat);
        if (!layer.projects()) {
          made.zoneout_h = zoneout_h.at(d * flat_rows + flat);
          made.h_before = made.h_prev;
        }
        if (layer.h_mask && made.h_prev != zero_h.data())  // zeros stay recognisable
          made.h_prev = masked(made.h_prev, h_mask.at(d * batch + b), out,
                               data<T>(masked_h) + (member * batch + row) * out);
        return made;
      };
      const auto project = [&](int64_t t, int64_t unit_group, int64_t row_group) {
        auto& from = project_from.of(unit_group, row_group);
        auto& to = project_to.of(unit_group, row_group);
        const int64_t count =
            rows_of_group(rows.live(t), row_group, grid.row_groups, from,
                          [&](int64_t row) { return const_data<T>(unprojected) + row * hidden; });
        rows_of_group(rows.live(t), row_group, grid.row_groups, to,
                      [&](int64_t row) { return y + rows.flat(t, row) * directions * out; });
        if constexpr (std::is_same_v<T, A>) {  // bfloat16 comes here as float32
          multiply_share(from.data(), count, *packed_w_hr, unit_group, grid.unit_groups, to.data());
          if (!layer.zoneout_h) return;
          const auto [begin, end] = packed_w_hr->shared_columns(unit_group, grid.unit_groups);
          for (int64_t row = row_group; row < rows.live(t); row += grid.row_groups) {
            const int64_t flat = rows.flat(t, row);
            const T* const keep = zoneout_h.at(d * flat_rows + flat);
            const T* const before = h_prev_at(t, row);
            T* const h = y + flat * directions * out;
            for (int64_t n = begin; n < end; ++n) h[n] = zoneout(keep[n], before[n], h[n]);
          }
        }
      };
      const auto work = [&](int64_t k, int64_t unit_group, int64_t row_group) {
        const int64_t t = rows.step(k / phases, reverse);
        if (k % phases == 1) return project(t, unit_group, row_group);
        auto& made = made_rows.of(unit_group, row_group);
        const int64_t member = grid.member(unit_group, row_group);
        const int64_t count = rows_of_group(rows.live(t), row_group, grid.row_groups, made,
                                            [&](int64_t row) { return make_row(t, row, member); });
        const int64_t last = (unit_group + 1) * tiles / grid.unit_groups;
        for (int64_t tile = unit_group * tiles / grid.unit_groups; tile < last; ++tile) {
          const int64_t unit = tile * kernels.lanes;
          kernels.forward(made.data(), count, out, packed_w_hh.tile(tile), unit,
                          std::min<int64_t>(kernels.lanes, hidden - unit), hidden, zero_h.data());
        }
      };
      walk_with_threads(grid, begin * phases, end * phases, work);
    }
    for (int64_t row = 0; row < batch; ++row) {
      if (rows.length(row) == 0) continue;
      const int64_t b = rows.batch_index(row), flat = rows.flat(rows.last_step(row, reverse), row);
      std::copy_n(y + flat * directions * out, out, h_last + b * out);
      if (saved_cells) std::copy_n(saved_cells + flat * hidden, hidden, c_state + b * hidden);
    }
  }
  return {output, h_n, c_n.to(options.dtype()), cells, gates};
}

template ForwardResult tiled_forward<float>(const Layer&, bool, bool);
template ForwardResult tiled_forward<double>(const Layer&, bool, bool);
template ForwardResult tiled_forward<bfloat16>(const Layer&, bool, bool);

}  // namespace fastlstm
