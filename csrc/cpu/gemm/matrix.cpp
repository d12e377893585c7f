#include "cpu/gemm/matrix.h"

#include <ATen/Parallel.h>

namespace fastlstm {

// The most bytes of one row of a panel if a matrix that is not transposed is multiplied in place.
constexpr int64_t kInPlacePanelBytes = 4096;
// With more rows, waiting for the next panel costs less than prefetching it during a product.
constexpr int64_t kMaxRowsToPrefetch = 64;

// The most bytes of the panels of one call, since each tile of rows reads them from the L2 cache.
// Of longer columns only so many terms count, so that one row has two panels to hide latency.
constexpr int64_t kBytesAtOnce = 512 << 10, kCountedTerms = 1024;

void Matrix::cut_into_panels(int64_t groups) {
  const bool in_place = form_ == MatrixForm::kInPlace, transposed = source_.transposed;
  const int64_t grain_vectors = in_place ? 1 : gemm_->vectors_multiple;
  grain_columns_ = grain_vectors * gemm_->lanes;
  grains_ = divide_up(N_, grain_columns_);
  const int64_t max_grains = !in_place    ? gemm_->max_vectors / grain_vectors
                             : transposed ? 1
                                          : kInPlacePanelBytes / gemm_->bytes(gemm_->lanes);
  if (form_ != MatrixForm::kPanels && !transposed)  // a weight in backward: a panel for each thread
    groups = std::max<int64_t>(groups, at::get_num_threads());
  const bool all_together = groups == kAllTogether;
  if (groups <= 0) grains_per_panel_ = max_grains, groups = 1;
  panel_count_ = std::min(grains_, divide_up(divide_up(grains_, max_grains), groups) * groups);
  const int64_t panel_bytes =
      gemm_->max_width() * gemm_->bytes(std::clamp<int64_t>(K_, 1, kCountedTerms));
  panels_at_once_ = in_place ? 1 : 4 / gemm_->max_vectors;
  if (form_ == MatrixForm::kPanels)
    panels_at_once_ =
        std::clamp(kBytesAtOnce / panel_bytes, panels_at_once_, gemm_->panels_at_once);
  if (all_together) panels_at_once_ = panel_count_;
}

Matrix::Matrix(const GemmKernels& gemm, int64_t K, int64_t N, int64_t groups,
               const at::Tensor& data, int64_t offset)
    : gemm_(&gemm), K_(K), N_(N), prepacked_(data) {
  cut_into_panels(groups);
  const int64_t bytes = offset + nbytes();
  TORCH_CHECK(int64_t(data.nbytes()) == bytes, "lstm_prepacked: expected ", bytes,
              " bytes of a prepacked matrix [", N, ", ", K, "], got ", data.sizes());
  first_ = static_cast<char*>(const_cast<void*>(data.const_data_ptr())) + offset;
}

Matrix::Matrix(const GemmKernels& gemm, MatrixSource source, int64_t groups, MatrixForm form)
    : gemm_(&gemm), K_(source.K), N_(source.N), form_(form) {
  if (form != MatrixForm::kPanels) source_ = std::move(source);
  cut_into_panels(groups);
  if (form != MatrixForm::kPanels) return;
  panels_ = Scratch(nbytes());
  first_ = panels_.data<char>();
  // Several threads may pack one panel, since panels may be few.
  constexpr int64_t kPackRows = 128, kBlocksPerThread = 4;
  const int64_t blocks = divide_up(K_, kPackRows), panels = panel_count();
  const MatrixRows rows{source.rows.data(), source.transposed};
  at::parallel_for(0, blocks * panels, kBlocksPerThread, [&](int64_t i, int64_t end) {
    for (; i < end; ++i) {
      const int64_t p = i / blocks, k = i % blocks * kPackRows;
      gemm.pack(rows, k, std::min(kPackRows, K_ - k), shape(p),
                panel(p) + (gemm.header_bytes + gemm.bytes(k)) * width(p));
    }
  });
}

Range Matrix::next_group(const Range& panels, bool backwards) const {
  const int64_t max_count = std::min(panels_at_once_, panels.end - panels.begin);
  const int64_t first = backwards ? panels.end - 1 : panels.begin, step = backwards ? -1 : 1;
  int64_t count = 1;
  while (count < max_count && width(first + step * count) == width(first)) ++count;
  return backwards ? Range{panels.end - count, panels.end}
                   : Range{panels.begin, panels.begin + count};
}

Prefetch Matrix::prefetch_of(int64_t panel, int64_t k, int64_t kc,
                             const PanelProduct& product) const {
  const PanelShape shape = this->shape(panel);
  const bool by_columns = source_.transposed;
  const int64_t terms = std::min(kc, K_ - k), count = by_columns ? shape.columns : terms;
  const int64_t begin = gemm_->bytes(by_columns ? k : shape.first_column);
  const int64_t end = begin + gemm_->bytes(by_columns ? terms : shape.columns);
  const int64_t calls =
      std::max<int64_t>(product.rows / gemm_->tile_rows * (product.K / kTermsPerFetch), 1);
  return {source_.rows.data() + (by_columns ? shape.first_column : k), count, begin, end,
          divide_up(count * divide_up(end - begin, 64), calls)};
}

const char* Matrix::prefetch_after(const Range& panels, int64_t p, int64_t last, int64_t k) const {
  const int64_t next = last + source_.gates, gate = (last - panels.begin + 1) % source_.gates;
  if (k >= K_) p = next < panels.end ? next : std::min(panels.begin + gate, panels.end - 1), k = 0;
  return static_cast<const char*>(unpacked_columns(p).first) + gemm_->bytes(k);
}

UnpackedColumns Matrix::unpacked_columns(int64_t panel) const {
  const char* const first = const_data<char>(source_.tensor);
  if (!source_.transposed) {
    const auto [begin, end] = columns({panel, panel + 1});
    return {first + gemm_->bytes(begin), N_, end - begin};
  }
  const int64_t gates = source_.gates, gate_width = source_.tensor.size(0) / gates;
  const int64_t unit = panel / gates * gemm_->lanes;
  return {first + gemm_->bytes((panel % gates * gate_width + unit) * K_), K_,
          std::min(gemm_->lanes, gate_width - unit)};
}

PanelProduct Matrix::product_of(const GemmArguments& call, const Range& panels, int64_t k) const {
  const auto [begin, end] = columns(panels);
  const int64_t count = panels.end - panels.begin, width = this->width(panels.begin);
  const int64_t columns = call.to.whole_vectors ? count * width : end - begin;
  PanelProduct product{};
  product.a = call.a, product.rows = call.rows;
  product.k_begin = k, product.K = std::min(call.kc, K_ - k);
  product.shape = {begin - call.origin, columns, width / gemm_->lanes}, product.panels = count;
  product.c = call.to.rows, product.c_is_16_bit = call.to.c_is_16_bit;
  product.accumulate = call.to.accumulate || k > 0, product.bias = call.to.bias;
  product.backwards = call.to.backwards;
  return product;
}

void Matrix::multiply_panels(const Range& panels, const void* const* a, int64_t rows, int64_t kc,
                             const Destination& to, Scratch& buffer) const {
  if (rows == 0) return;  // kernels expect at least one row
  const GemmArguments call{a, rows, kc, to.whole_vectors ? columns(panels).begin : 0, to, buffer};
  if (form_ == MatrixForm::kPanels)
    multiply_from_panels(call, panels);
  else if (form_ == MatrixForm::kPanelOnDemand)
    multiply_on_demand(call, panels);
  else if (source_.transposed)
    multiply_columns_in_place(call, panels);
  else
    multiply_rows_in_place(call, panels);
}

void Matrix::multiply_from_panels(const GemmArguments& call, const Range& panels) const {
  for (int64_t k = 0; k == 0 || k < K_; k += call.kc) {
    const auto multiply_group = [&](const Range& group) {
      PanelProduct product = product_of(call, group, k);
      product.panel = panel(group.begin) + width(group.begin) * gemm_->bytes(k);
      product.panel_stride = width(group.begin) * bytes_of_column();
      gemm_->multiply(product);
    };
    for_panel_groups(panels, multiply_group, call.to.backwards);
  }
}

// Packs each kc terms of a panel into the buffer right before they are multiplied.
void Matrix::multiply_on_demand(GemmArguments call, const Range& panels) const {
  const int64_t kc = call.kc = round_up(std::min(call.kc, K_), gemm_->k_multiple);
  const int64_t blocks = divide_up(K_, kc), bytes = gemm_->max_width() * gemm_->bytes(kc);
  if (call.buffer.nbytes() < bytes) call.buffer = Scratch(bytes);
  const MatrixRows rows{source_.rows.data(), source_.transposed};
  for (int64_t i = panels.begin * blocks; i < panels.end * blocks; ++i) {
    const int64_t p = i / blocks;
    PanelProduct product = product_of(call, {p, p + 1}, i % blocks * kc);
    gemm_->pack(rows, product.k_begin, product.K, shape(p), call.buffer.data<void>());
    product.panel = call.buffer.data<void>();
    Prefetch prefetch{};
    if (i + 1 < panel_count() * blocks && call.rows < kMaxRowsToPrefetch) {
      prefetch = prefetch_of((i + 1) / blocks, (i + 1) % blocks * kc, kc, product);
      product.prefetch = &prefetch;
    }
    gemm_->multiply(product);
  }
}

// Multiplies gate by gate, as memory has them. With one row a call may take several panels.
void Matrix::multiply_columns_in_place(const GemmArguments& call, const Range& panels) const {
  const int64_t gates = source_.gates;
  const int64_t stride = gates * (call.rows == 1 ? gemm_->unpacked_vectors_of_one_row : 1);
  for (int64_t gate = 0; gate < gates; ++gate)
    for (int64_t p = panels.begin + gate; p < panels.end; p += stride) {
      const int64_t panels_after = std::min((panels.end - 1 - p) / gates, stride / gates - 1);
      const int64_t last = p + panels_after * gates;
      UnpackedColumns columns = unpacked_columns(p);
      columns.vectors_apart = gates;
      if (last > p) columns.count = panels_after * gemm_->lanes + unpacked_columns(last).count;
      for (int64_t k = 0; k < K_; k += call.kc)
        gemm_->multiply_unpacked_columns(product_of(call, {p, last + 1}, k), columns,
                                         prefetch_after(panels, p, last, k + call.kc));
    }
}

void Matrix::multiply_rows_in_place(const GemmArguments& call, const Range& panels) const {
  const int64_t bytes = 2 * call.rows * max_panel_width() * bytes_of(gemm_->sum_dtype);
  if (call.buffer.nbytes() < bytes) call.buffer = Scratch(bytes);
  for (int64_t p = panels.begin; p < panels.end; ++p)
    for (int64_t k = 0; k < K_; k += call.kc)
      gemm_->multiply_unpacked_rows(product_of(call, {p, p + 1}, k), unpacked_columns(p),
                                    call.buffer.data<void>());
}

Matrix matrix_of(const GemmKernels& gemm, const at::Tensor& w, bool transposed, int64_t groups,
                 MatrixForm form) {
  const int64_t rows = w.size(0), columns = w.size(1);
  MatrixSource source{{}, transposed, transposed ? columns : rows, transposed ? rows : columns, w};
  if (form != MatrixForm::kInPlace)
    source.rows = row_pointers(const_data<char>(w), rows, columns * w.element_size());
  return {gemm, std::move(source), groups, form};
}

Matrix gate_matrix_of(const GemmKernels& gemm, const at::Tensor& w, const GateOrder& order,
                      MatrixForm form) {
  const int64_t K = w.size(1), bytes_of_row = K * w.element_size();
  MatrixSource source{{}, true, K, order.columns(), w, 4};
  if (form != MatrixForm::kInPlace) {
    source.rows.resize(source.N);
    auto to = source.rows.begin();
    const char* const first = const_data<char>(w);
    order.for_each_row([&](int64_t row) { *to++ = first + row * bytes_of_row; });
  }
  return {gemm, std::move(source), Matrix::kInGateOrder, form};
}

}  // namespace fastlstm
