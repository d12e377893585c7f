#include <ATen/Parallel.h>

#include <algorithm>
#include <type_traits>

#include "packed_matrix.h"
#include "rows.h"
#include "tiled.h"

namespace fastlstm {

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

template ForwardResult one_step_forward<float>(const Layer&);
template ForwardResult one_step_forward<double>(const Layer&);

}  // namespace fastlstm
