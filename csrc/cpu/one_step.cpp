// Every weight is used once per row, so a packed copy of the matrices would cross memory twice
// more. Instead each thread takes one vector of units and one gate after the other: few rows are
// multiplied with the weights as they lie, many with a panel that is packed into the cache. The
// sums run as in a walk, so the bits are those of a walk.
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

// From so many rows on, a panel is cheaper than turning the weights again for every tile of rows.
constexpr int64_t kRowsWorthPacking = 13;

// Rows [begin, end) of a step, for some vectors of units.
template <typename T>
class OneStepRows {
  using A = State_t<T>;

 public:
  OneStepRows(const OneStep<T>& step, int64_t begin, int64_t end, int64_t vectors)
      : s_(step),
        begin_(begin),
        rows_(end - begin),
        columns_(4 * vectors * lanes_),
        a_(rows_),
        sums_(rows_),
        row_(rows_) {
    const int64_t terms = std::max(std::min(kPiece, s_.input_size), s_.output_size);
    if (packs()) panel_ = scratch<T>(4 * lanes_ * (terms + terms % 2));
    gates_ = scratch<A>((rows_ + 1) * 4 * vectors * lanes_);
  }

  // The vectors of units from `unit` on.
  void run(int64_t unit, int64_t vectors) {
    unit_ = unit, vectors_ = vectors;
    multiply(s_.x, s_.w_ih, s_.input_size, kPiece, true);
    multiply(s_.h_prev, s_.w_hh, s_.output_size, s_.output_size, false);
    for (int64_t v = 0; v < vectors_; ++v) {
      const int64_t first = unit_ + v * lanes_;
      for (int64_t r = 0; r < rows_; ++r) {
        const int64_t at = (begin_ + r) * s_.hidden_size + first;
        row_[r] = {a_[r],          gates(r, v, 0), nullptr,
                   s_.c_prev + at, s_.c + at,      s_.h + (begin_ + r) * s_.h_stride + first};
      }
      // The products are there already: a sum of no terms is left.
      kernels_.forward(row_.data(), rows_, 0, nullptr, 0, std::min(lanes_, s_.hidden_size - first),
                       lanes_, nullptr);
    }
  }

 private:
  bool packs() const { return rows_ >= kRowsWorthPacking; }

  int64_t column(int64_t v, int64_t gate) const { return (v * 4 + gate) * lanes_; }
  A* gates(int64_t r, int64_t v, int64_t gate) const {
    return data<A>(gates_) + r * column(vectors_, 0) + column(v, gate);
  }

  // Of the input: gates = bias + a W^T, else gates += a W^T, `piece` terms at a time.
  void multiply(const T* a, const T* w, int64_t K, int64_t piece, bool of_input) {
    for (int64_t r = 0; r < rows_; ++r) a_[r] = a + (begin_ + r) * K;
    A* const bias = gates(rows_, 0, 0);
    for (int64_t v = 0; v < vectors_; ++v)
      for (int64_t gate = 0; gate < 4; ++gate) {
        const int64_t first = unit_ + v * lanes_, from = gate * s_.hidden_size + first;
        const int64_t last = std::min(lanes_, s_.hidden_size - first) - 1, to = column(v, gate);
        // Any weights where there is no unit.
        for (int64_t l = 0; l < lanes_; ++l) columns_[to + l] = w + (from + std::min(l, last)) * K;
        if (!of_input) continue;
        for (int64_t l = 0; l <= last; ++l)
          bias[to + l] = s_.b_ih ? A(s_.b_ih[from + l]) + A(s_.b_hh[from + l]) : A(0);
        std::fill_n(bias + to + last + 1, lanes_ - last - 1, A(0));
      }
    // Neighbouring vectors of a gate are neighbours in memory, so few rows take gate after gate.
    const int64_t together = packs() ? 4 : 1;
    for (int64_t gate = 0; gate < 4; gate += together)
      for (int64_t v = 0; v < vectors_; ++v) {
        for (int64_t r = 0; r < rows_; ++r) sums_[r] = gates(r, v, gate);
        const T* const* const columns = &columns_[column(v, gate)];
        const T* const* const next =
            &columns_[v + 1 < vectors_ ? column(v + 1, gate) : column(0, (gate + together) % 4)];
        int64_t k = 0;
        do {  // once if there is no input
          const int64_t terms = std::min(piece, K - k);
          const bool accumulate = !of_input || k > 0;
          if (packs())
            multiply_packed(columns, k, terms, accumulate, bias + column(v, 0), next);
          else
            kernels_.multiply_unpacked(a_.data(), rows_, k, terms, columns, *next + k * lanes_,
                                       sums_.data(), accumulate, bias + column(v, gate));
          k += terms;
        } while (k < K);
      }
  }

  void multiply_packed(const T* const* columns, int64_t k, int64_t terms, bool accumulate,
                       const A* bias, const T* const* next) {
    const PanelShape shape{0, 4 * lanes_, 4};
    kernels_.pack(columns, true, k, terms, shape, data<T>(panel_));
    const int64_t begin = k * sizeof(T), end = (k + terms) * sizeof(T);
    const int64_t lines = shape.columns * ((end - begin + 63) / 64);
    const int64_t times = std::max<int64_t>(rows_ / kernels_.rows * (terms / kTermsAhead), 1);
    Ahead ahead{reinterpret_cast<const void* const*>(next), shape.columns, begin, end,
                (lines + times - 1) / times};
    kernels_.multiply(a_.data(), rows_, k, terms, data<T>(panel_), shape, sums_.data(), accumulate,
                      bias, &ahead);
  }

  const TiledKernels<T, A>& kernels_ = tiled_kernels<T>();
  const OneStep<T>& s_;
  const int64_t begin_, rows_, lanes_ = kernels_.lanes;
  int64_t unit_ = 0, vectors_ = 0;
  at::Tensor panel_, gates_;  // gates [rows][vectors][4][lanes], a bias behind them
  std::vector<const T*> columns_, a_;
  std::vector<A*> sums_;
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
  constexpr int64_t kRowsOfAGroup = 64;
  const int64_t row_groups = std::clamp<int64_t>(
      batch / kRowsOfAGroup, 1, std::max<int64_t>(at::get_num_threads() / tiles, 1));
  // Gates of so many vectors of units are computed together, then the cell equations.
  constexpr int64_t kGatesBytes = 256 << 10;
  // Below this many multiply-adds, waking another thread costs more than it helps.
  constexpr int64_t kWorthAThread = 1 << 17;
  const int64_t work = 4 * lanes * (input_size + hidden) * std::max<int64_t>(batch / row_groups, 1);

  for (int64_t d = 0; d < directions; ++d) {
    const Direction& w = layer.directions[d];
    const Tensor w_ih = w.w_ih.contiguous(), w_hh = w.w_hh.contiguous();
    const Tensor b_ih = layer.has_bias() ? w.b_ih.contiguous() : Tensor();
    const Tensor b_hh = layer.has_bias() ? w.b_hh.contiguous() : Tensor();
    T* const y = data<T>(output) + d * out;
    const Tensor unprojected = layer.projects() ? scratch<T>(batch * hidden) : Tensor();
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
            const int64_t begin = group * batch / row_groups,
                          end = (group + 1) * batch / row_groups;
            const int64_t stop = std::min(last, (group + 1) * tiles);
            const int64_t at_once = std::clamp<int64_t>(
                kGatesBytes / (4 * lanes * sizeof(A) * (end - begin + 1)), 1, stop - k);
            OneStepRows<T> rows(step, begin, end, at_once);
            for (; k < stop; k += at_once) rows.run(k % tiles * lanes, std::min(at_once, stop - k));
            k = stop;
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
