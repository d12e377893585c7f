// Every weight is used once per row, so a packed copy of the matrices would cross memory twice
// more. Instead each thread takes one vector of units and one gate after the other: few rows are
// multiplied with the weights as they lie, many with a panel that is packed into the cache. The
// sums run as in a walk, so the bits are those of a walk, but for few rows of bfloat16 on AMX. A
// row that is reset starts from zeros.
#include <ATen/EmptyTensor.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <memory>

#include "core/operators.h"
#include "cpu/cell/cell.h"
#include "cpu/gemm/packed_matrix.h"
#include "cpu/targets/kernels.h"
#include "cpu/walk/tiled.h"

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
  T* gates;  // [B,4H] activated, or nullptr
  int64_t input_size, hidden_size, output_size, h_stride;
};

// From so many rows on, a panel is cheaper than transposing the weights for every tile of rows.
constexpr int64_t kRowsWorthPacking = 13;
constexpr size_t kLine = 64;  // of the cache, in bytes

// Rows [begin, end) of a step, for some vectors of units.
template <typename T>
class OneStepRows {
  using A = State_t<T>;

 public:
  OneStepRows(const CpuPlan& plan, const OneStep<T>& step, int64_t begin, int64_t end,
              int64_t vectors)
      : product_(*plan.product),
        prefetches_(plan.prefetches_weights),
        s_(step),
        begin_(begin),
        rows_(end - begin),
        a_(rows_),
        sums_(rows_),
        row_(rows_) {
    const int64_t terms = std::max(std::min(kPiece, s_.input_size), s_.output_size);
    if (packs()) panel_ = scratch<T>(product_.width() * round_up(terms, product_.padding));
    const int64_t count = 4 * vectors * lanes_;
    memory_.reset(
        new A[(2 * rows_ + 1) * count + kLine / sizeof(A)]);  // in less time than a tensor
    bias_ = memory_.get();
    bias_ += (kLine - reinterpret_cast<uintptr_t>(bias_) % kLine) / sizeof(A);
    from_x_ = bias_ + count, from_h_ = from_x_ + rows_ * count;
    for (int64_t r = 0; r < rows_; ++r) {
      const int64_t row = begin + r, of_row = row * s_.hidden_size;
      row_[r] = {nullptr, s_.gates ? s_.gates + 4 * of_row : nullptr, s_.c_prev + of_row,
                 s_.c + of_row, s_.h + row * s_.h_stride};
    }
  }

  // The vectors of units from `unit` on.
  void run(int64_t unit, int64_t vectors) {
    unit_ = unit, vectors_ = vectors;
    find_bias();
    multiply(s_.x, s_.w_ih, s_.input_size, kPiece, bias_, from_x_);
    multiply(s_.h_prev, s_.w_hh, s_.output_size, s_.output_size, nullptr, from_h_);
    for (int64_t v = 0; v < vectors_; ++v) {
      const int64_t first = unit_ + v * lanes_, to = column(v, 0);
      cell_.forward(row_.data(), rows_, {from_h_ + to, column(vectors_, 0), from_x_ + to},
                    {first, std::min(lanes_, s_.hidden_size - first), s_.hidden_size});
    }
  }

 private:
  bool packs() const { return rows_ >= kRowsWorthPacking; }

  int64_t column(int64_t v, int64_t gate) const { return (v * 4 + gate) * lanes_; }

  // The rows of W for the units of a vector and a gate. Those of the next are next to them in
  // memory, where few rows take gate after gate.
  Columns columns(const T* w, int64_t K, int64_t v, int64_t gate) const {
    const int64_t first = unit_ + v * lanes_;
    return {w + (gate * s_.hidden_size + first) * K, K, std::min(lanes_, s_.hidden_size - first)};
  }

  void find_bias() {
    std::fill_n(bias_, column(vectors_, 0), A(0));
    if (!s_.b_ih) return;
    for (int64_t v = 0; v < vectors_; ++v)
      for (int64_t gate = 0; gate < 4; ++gate) {
        const int64_t first = unit_ + v * lanes_, from = gate * s_.hidden_size + first;
        const T *const b_ih = s_.b_ih + from, *const b_hh = s_.b_hh + from;
        A* const to = bias_ + column(v, gate);
        for (int64_t l = 0; l < std::min(lanes_, s_.hidden_size - first); ++l)
          to[l] = A(b_ih[l]) + A(b_hh[l]);
      }
  }

  // to = bias + a W^T, `piece` terms at a time; the bias may be nullptr.
  void multiply(const T* a, const T* w, int64_t K, int64_t piece, const A* bias, A* to) {
    for (int64_t r = 0; r < rows_; ++r) a_[r] = a + (begin_ + r) * K;
    int64_t k = 0;
    do {  // once if there is no input
      const int64_t terms = std::min(piece, K - k);
      if (packs())
        multiply_packed(w, K, k, terms, bias, to);
      else
        multiply_unpacked(w, K, k, terms, bias, to);
      k += terms;
    } while (k < K);
  }

  void point_at(A* to, int64_t column) {
    for (int64_t r = 0; r < rows_; ++r) sums_[r] = to + r * this->column(vectors_, 0) + column;
  }

  void multiply_unpacked(const T* w, int64_t K, int64_t k, int64_t terms, const A* bias, A* to) {
    for (int64_t gate = 0; gate < 4; ++gate)
      for (int64_t v = 0; v < vectors_; ++v) {
        const bool last = v + 1 == vectors_;
        const Columns here = columns(w, K, v, gate),
                      next = columns(w, K, last ? 0 : v + 1, last ? (gate + 1) % 4 : gate);
        point_at(to, column(v, gate));
        product_.multiply_unpacked(
            {a_.data(),
             rows_,
             k,
             terms,
             nullptr,
             {0, lanes_, 1},
             sums_.data(),
             k > 0,
             bias ? bias + column(v, gate) : nullptr},
            here, prefetches_ ? static_cast<const T*>(next.first) + k * lanes_ : nullptr);
      }
  }

  void multiply_packed(const T* w, int64_t K, int64_t k, int64_t terms, const A* bias, A* to) {
    const std::vector<const void*> rows = rows_of(w, K);
    const int64_t width = product_.width();
    for (int64_t first = 0; first < column(vectors_, 0); first += width) {
      const PanelShape shape{0, width, product_.vectors};
      product_.pack({&rows[first], true}, k, terms, shape, data<T>(panel_));
      const int64_t next = (first + width) % column(vectors_, 0);
      Prefetch prefetch = prefetch_during(product_, rows_, terms, &rows[next], width, k, k + terms);
      point_at(to, first);
      PanelProduct some{a_.data(),    rows_,           k,
                        terms,        data<T>(panel_), shape,
                        sums_.data(), k > 0,           bias ? bias + first : nullptr};
      some.prefetch = &prefetch;
      product_.multiply(some);
    }
  }
  // Of W, in the order of the sums; any row where there is no unit.
  std::vector<const void*> rows_of(const T* w, int64_t K) const {
    std::vector<const void*> rows;
    for (int64_t v = 0; v < vectors_; ++v)
      for (int64_t gate = 0; gate < 4; ++gate) {
        const Columns here = columns(w, K, v, gate);
        for (int64_t l = 0; l < lanes_; ++l)
          rows.push_back(static_cast<const T*>(here.first) + std::min(l, here.count - 1) * K);
      }
    return rows;
  }

  const Product& product_;
  const bool prefetches_;
  const Cell<T>& cell_ = *kernels<T>().cell;
  const OneStep<T>& s_;
  const int64_t begin_, rows_, lanes_ = product_.lanes;
  int64_t unit_ = 0, vectors_ = 0;
  at::Tensor panel_;
  std::unique_ptr<A[]> memory_;
  A *bias_, *from_x_, *from_h_;  // [vectors][4][lanes], and rows of them
  std::vector<const void*> a_;
  std::vector<void*> sums_;
  std::vector<ForwardRow<T>> row_;
};

template <typename T>
void run_cells(const CpuPlan& plan, const OneStep<T>& step, int64_t batch) {
  // Gates of so many vectors of units are computed together, then the cell equations.
  constexpr int64_t kGatesBytes = 256 << 10;
  const Product& product = *plan.product;
  const int64_t lanes = product.lanes, tiles = divide_up(step.hidden_size, lanes);
  const int64_t row_groups = plan.step_row_groups;
  const int64_t work =
      4 * lanes * (step.input_size + step.hidden_size) * std::max<int64_t>(batch / row_groups, 1);
  // Neighboring items are vectors of units for the same rows.
  at::parallel_for(0, row_groups * tiles, divide_up(kRowsWorthAThread, work),
                   [&](int64_t first, int64_t last) {
                     const ThreadSeries series(product);
                     for (int64_t k = first; k < last;) {
                       const auto [begin, end] = part_of(batch, k / tiles, row_groups);
                       const int64_t count = std::min(last - k, tiles - k % tiles);
                       const int64_t bytes = 4 * lanes * sizeof(State_t<T>) * (end - begin + 1);
                       const int64_t at_once = std::clamp<int64_t>(kGatesBytes / bytes, 1, count);
                       OneStepRows<T> some(plan, step, begin, end, at_once);
                       for (int64_t done = 0; done < count; done += at_once)
                         some.run((k % tiles + done) * lanes, std::min(at_once, count - done));
                       k += count;
                     }
                   });
}

Tensor as_dtype(const Tensor& tensor, at::ScalarType dtype) {
  return tensor.scalar_type() == dtype ? tensor : tensor.to(dtype);
}

const Direction& contiguous(const Direction& w, Direction& copies) {
  bool all = true;
  for_each_weight(w, [&](const Tensor& each, const char*) { all = all && each.is_contiguous(); });
  if (all) return w;
  copies = w;
  for_each_weight(copies, [](Tensor& weight, const char*) { weight = weight.contiguous(); });
  return copies;
}

// A state [D,B,size], contiguous, with zeros where a row is reset.
Tensor after_reset(const Layer& layer, const Tensor& state) {
  if (!layer.reset) return state;
  const Tensor reset = layer.reset->contiguous();
  const bool* const is_reset = reset.const_data_ptr<bool>();
  const bool any = std::count(is_reset, is_reset + reset.numel(), true) > 0;
  return any ? state.masked_fill(reset.view({-1, 1}), 0) : state;
}

}  // namespace

template <typename T>
ForwardResult one_step_forward(const Layer& layer, const CpuPlan& plan, bool save_cells,
                               bool save_gates) {
  const Sizes s = layer.sizes();
  using A = State_t<T>;
  const auto dtype = layer.input.scalar_type(), state = state_dtype(dtype);
  const auto empty = [](at::IntArrayRef sizes, at::ScalarType dtype) {
    return Tensor(at::detail::empty_cpu(sizes, dtype));  // without the dispatcher
  };
  const Tensor x = layer.input.contiguous();
  const Tensor h_0 = after_reset(layer, layer.h_0.contiguous());
  const Tensor c_0 = after_reset(layer, as_dtype(layer.c_0, state).contiguous());
  const int64_t D = s.directions, B = s.batch, H = s.hidden_size, P = s.output_size;
  const Tensor output = empty({1, B, D * P}, dtype), h_n = empty({D, B, P}, dtype);
  const Tensor c_n = empty({D, B, H}, state);
  const Tensor gates = save_gates ? empty({D, 1, B, 4 * H}, dtype) : Tensor();
  for (int64_t d = 0; d < D; ++d) {
    Direction copies;
    const Direction& w = contiguous(layer.directions[d], copies);
    const auto bias = [](const Tensor& b) { return b.defined() ? const_data<T>(b) : nullptr; };
    const Tensor unprojected = w.w_hr.defined() ? scratch<T>(B * H) : Tensor();
    T* const h = data<T>(output) + d * P;
    OneStep<T> step{const_data<T>(w.w_ih),
                    const_data<T>(w.w_hh),
                    bias(w.b_ih),
                    bias(w.b_hh),
                    const_data<T>(x),
                    const_data<T>(h_0) + d * B * P,
                    const_data<A>(c_0) + d * B * H,
                    h,
                    data<A>(c_n) + d * B * H,
                    save_gates ? data<T>(gates) + d * B * 4 * H : nullptr,
                    s.input_size,
                    H,
                    P,
                    D * P};
    if (w.w_hr.defined()) step.h = data<T>(unprojected), step.h_stride = H;
    run_cells(plan, step, B);
    if (w.w_hr.defined())
      multiply_into<T>(row_pointers(const_data<T>(unprojected), B, H),
                       pack(*plan.product, w.w_hr, true, 1), row_pointers(h, B, D * P), false);
  }
  for (int64_t d = 0; d < D; ++d)
    for (int64_t b = 0; b < B; ++b)
      std::copy_n(const_data<T>(output) + (b * D + d) * P, P, data<T>(h_n) + (d * B + b) * P);
  const Tensor cells = save_cells ? empty({D, 1, B, H}, state) : Tensor();
  if (save_cells) std::copy_n(const_data<A>(c_n), D * B * H, data<A>(cells));  // c_n is the user's
  return {output, h_n, as_dtype(c_n, layer.c_0.scalar_type()), cells, gates};
}

#define FASTLSTM_INSTANTIATE(T, A, name) \
  template ForwardResult one_step_forward<T>(const Layer&, const CpuPlan&, bool, bool);
FASTLSTM_FOR_EACH_DTYPE(FASTLSTM_INSTANTIATE)

}  // namespace fastlstm
