// Every weight is used once per row, so a packed copy of the matrices would cross memory twice
// more. Instead each thread packs a piece of the panel of one vector of units into its cache and
// passes all rows over it. The sums run as in a walk, so the bits are those of a walk.
#include <ATen/Parallel.h>

#include <algorithm>

#include "packed_matrix.h"
#include "rows.h"
#include "tiled.h"

namespace fastlstm {
namespace {

template <typename T>
struct OneStep {
  using A = State_t<T>;
  const T *w_ih, *w_hh, *b_ih, *b_hh;  // biases may be nullptr
  const T *x, *h_prev;
  const A* c_prev;
  T* h;
  A* c;
  int64_t input_size, hidden_size, output_size, h_stride;
};

// Rows [begin, end) of a step, one vector of units after the other.
template <typename T>
class OneStepRows {
  using A = State_t<T>;

 public:
  OneStepRows(const OneStep<T>& step, int64_t begin, int64_t end)
      : s_(step),
        begin_(begin),
        rows_(end - begin),
        width_(4 * kernels_.lanes),
        panel_(scratch<T>(width_ *
                          (1 + std::max(std::min(kPiece, step.input_size), step.output_size)))),
        gates_(scratch<A>((rows_ + 1) * width_)),
        sums_(row_pointers(data<A>(gates_), rows_, width_)),
        gate_(width_),
        columns_(width_),
        a_(rows_),
        row_(rows_) {}

  void run(int64_t unit) {
    const int64_t lanes = kernels_.lanes;
    for (int64_t n = 0; n < width_; ++n)  // any gate where there is no unit
      gate_[n] = n / lanes * s_.hidden_size + std::min(unit + n % lanes, s_.hidden_size - 1);
    A* const bias = data<A>(gates_) + rows_ * width_;
    for (int64_t n = 0; n < width_; ++n)
      bias[n] = s_.b_ih ? A(s_.b_ih[gate_[n]]) + A(s_.b_hh[gate_[n]]) : A(0);
    find(s_.x, s_.w_ih, s_.input_size);
    int64_t k = 0;
    do {  // once if there is no input
      const int64_t count = std::min(kPiece, s_.input_size - k);
      pack(k, count);
      kernels_.multiply(a_.data(), rows_, k, count, data<T>(panel_), {0, width_, 4}, sums_.data(),
                        k > 0, bias);
      k += count;
    } while (k < s_.input_size);

    find(s_.h_prev, s_.w_hh, s_.output_size);
    pack(0, s_.output_size);
    for (int64_t r = 0; r < rows_; ++r) {
      const int64_t at = (begin_ + r) * s_.hidden_size + unit;
      row_[r] = {a_[r],          sums_[r],  nullptr,
                 s_.c_prev + at, s_.c + at, s_.h + (begin_ + r) * s_.h_stride + unit};
    }
    kernels_.forward(row_.data(), rows_, s_.output_size, data<T>(panel_), 0,
                     std::min(lanes, s_.hidden_size - unit), lanes);
  }

 private:
  // The rows of a [rows,K] and of w [4H,K] that make this vector of units.
  void find(const T* a, const T* w, int64_t K) {
    for (int64_t r = 0; r < rows_; ++r) a_[r] = a + (begin_ + r) * K;
    for (int64_t n = 0; n < width_; ++n) columns_[n] = w + gate_[n] * K;
  }

  void pack(int64_t k, int64_t count) {
    kernels_.pack(columns_.data(), true, k, count, {0, width_, 4}, data<T>(panel_));
  }

  const TiledKernels<T, A>& kernels_ = tiled_kernels<T>();
  const OneStep<T>& s_;
  const int64_t begin_, rows_, width_;
  const at::Tensor panel_, gates_;
  const std::vector<A*> sums_;
  std::vector<int64_t> gate_;  // of each column: a row of the weights
  std::vector<const T*> columns_;
  std::vector<const T*> a_;
  std::vector<ForwardRow<T, A>> row_;
};

}  // namespace

template <typename T>
ForwardResult one_step_forward(const Layer& layer) {
  using A = State_t<T>;
  const int64_t directions = layer.num_directions(), batch = layer.batch.expect_int();
  const int64_t input_size = layer.input_size.expect_int(), out = layer.output_size.expect_int();
  const int64_t hidden = layer.hidden_size.expect_int();
  const auto options = layer.input.options();
  const auto state_options = options.dtype(state_dtype(layer.input.scalar_type()));
  const Tensor x = layer.input.contiguous(), h_0 = layer.h_0.contiguous();
  const Tensor c_0 = layer.c_0.to(state_options).contiguous();
  Tensor output = at::empty({1, batch, directions * out}, options);
  Tensor h_n = at::empty({directions, batch, out}, options);
  Tensor c_n = at::empty({directions, batch, hidden}, state_options);

  const int64_t lanes = tiled_kernels<T>().lanes, tiles = (hidden + lanes - 1) / lanes;
  // Where there are more threads than vectors of units, they share the rows.
  constexpr int64_t kRowsWorthPacking = 64;
  const int64_t row_groups = std::clamp<int64_t>(
      batch / kRowsWorthPacking, 1, std::max<int64_t>(at::get_num_threads() / tiles, 1));
  // Below this many multiply-adds, waking another thread costs more than it helps.
  constexpr int64_t kWorthAThread = 1 << 17;
  const int64_t work = 4 * lanes * (input_size + hidden) * std::max<int64_t>(batch / row_groups, 1);

  for (int64_t d = 0; d < directions; ++d) {
    const Direction& w = layer.directions[d];
    const Tensor w_ih = w.w_ih.contiguous(), w_hh = w.w_hh.contiguous();
    const Tensor b_ih = layer.has_bias() ? w.b_ih.contiguous() : Tensor();
    const Tensor b_hh = layer.has_bias() ? w.b_hh.contiguous() : Tensor();
    T* const y = data<T>(output) + d * out;
    const Tensor unprojected = layer.projects() ? at::empty({batch, hidden}, options) : Tensor();
    const OneStep<T> step{const_data<T>(w_ih),
                          const_data<T>(w_hh),
                          layer.has_bias() ? const_data<T>(b_ih) : nullptr,
                          layer.has_bias() ? const_data<T>(b_hh) : nullptr,
                          const_data<T>(x),
                          const_data<T>(h_0) + d * batch * out,
                          const_data<A>(c_0) + d * batch * hidden,
                          layer.projects() ? data<T>(unprojected) : y,
                          data<A>(c_n) + d * batch * hidden,
                          input_size,
                          hidden,
                          out,
                          layer.projects() ? hidden : directions * out};
    // Neighbouring items are vectors of units for the same rows.
    at::parallel_for(
        0, row_groups * tiles, (kWorthAThread + work - 1) / work, [&](int64_t first, int64_t last) {
          for (int64_t k = first; k < last;) {
            const int64_t group = k / tiles;
            OneStepRows<T> rows(step, group * batch / row_groups, (group + 1) * batch / row_groups);
            for (; k < last && k / tiles == group; ++k) rows.run(k % tiles * lanes);
          }
        });
    if constexpr (std::is_same_v<T, A>) {  // bfloat16 projects in float32
      if (!layer.projects()) continue;
      const Tensor w_hr = w.w_hr.contiguous();
      const PackedMatrix<T> packed(row_pointers(const_data<T>(w_hr), out, hidden).data(), true, 0,
                                   hidden, out, 1);
      multiply<T>(row_pointers(const_data<T>(unprojected), batch, hidden), packed,
                  row_pointers(y, batch, directions * out), false, nullptr);
    }
  }
  for (int64_t d = 0; d < directions; ++d)
    for (int64_t b = 0; b < batch; ++b)
      std::copy_n(const_data<T>(output) + (b * directions + d) * out, out,
                  data<T>(h_n) + (d * batch + b) * out);
  return {output, h_n, c_n.to(options.dtype()), at::empty({0}, state_options),
          at::empty({0}, options)};
}

template ForwardResult one_step_forward<float>(const Layer&);
template ForwardResult one_step_forward<double>(const Layer&);
template ForwardResult one_step_forward<bfloat16>(const Layer&);

}  // namespace fastlstm
