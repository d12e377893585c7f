// Products by oneDNN's micro-kernel. It needs the rows of A, and those of C, at one stride. Rows
// that lie elsewhere (the first step, rows after a reset) are copied: a few hundred bytes each,
// little beside the product. Sums are in float32, in the order of the micro-kernel. Loading tiles
// of A and of the panel from the L1 and L2 caches bounds it.
#include "cpu/products/brgemm.h"

#include <ATen/Context.h>
#include <ATen/cpu/Utils.h>
#include <ATen/native/CPUBlas.h>

#include <algorithm>
#include <vector>

#include "pointers.h"

namespace fastlstm {

#if defined(CPUBLAS_BRGEMM_BF16BF16F32) && defined(CPUBLAS_BRGEMM_U8I8I32) && defined(__x86_64__)
namespace {

using at::native::cpublas::brgemm;

// The distance between neighboring rows; 0 if it is not the same for all, or so large that the
// rows may belong to different tensors.
template <typename T>
int64_t common_stride(const auto* rows, int64_t count, int64_t otherwise) {
  if (count == 1) return otherwise;
  const auto row = [rows](int64_t r) { return static_cast<const T*>(rows[r]); };
  const int64_t stride = row(1) - row(0);
  for (int64_t r = 2; r < count; ++r)
    if (row(r) - row(r - 1) != stride) return 0;
  constexpr int64_t kLargest = 1 << 20;  // oneDNN counts bytes in 32 bits
  return stride > 0 && stride <= kLargest ? stride : 0;
}

// The rows of A from element `first` on, at one stride, K filled up to `padded` with zeros.
template <typename T>
class Factor {
 public:
  Factor(const void* const* a, int64_t rows, int64_t first, int64_t K, int64_t padded)
      : stride_(K == padded ? common_stride<T>(a, rows, padded) : 0),
        data_(static_cast<const T*>(a[0]) + first) {
    if (stride_ >= padded) return;
    static thread_local std::vector<T> copy;  // grows to the largest product of a thread
    copy.resize(rows * padded);
    for (int64_t r = 0; r < rows; ++r)
      std::fill_n(std::copy_n(static_cast<const T*>(a[r]) + first, K, &copy[r * padded]),
                  padded - K, T{});
    data_ = copy.data(), stride_ = padded;
  }
  int64_t stride() const { return stride_; }
  const T* data() const { return data_; }

 private:
  int64_t stride_;
  const T* data_;
};

constexpr int64_t kRows = 64;  // four AMX tiles, for which a panel is loaded once

// The sums of rows p.a [rows][columns], rows `stride` apart, from zero or from what is there.
void sum(const PanelProduct& p, float* sums, int64_t stride, bool accumulate) {
  const int64_t K = p.K + p.K % 2;  // whole pairs
  const Factor<at::BFloat16> a(p.a, p.rows, p.k_begin, p.K, K);
  brgemm(p.rows, p.shape.columns, K, a.stride(), p.shape.vectors * 16, stride, accumulate, a.data(),
         static_cast<const at::BFloat16*>(p.panel), sums);
}

// Our own, which read the same panels.
const Product *tiles = nullptr, *int8_tiles = nullptr;

// The terms that a sum starts from: those of C or the bias. Returns whether there are any.
bool put_first_terms(const PanelProduct& p, float* sums, int64_t stride) {
  const bool any = p.accumulate || p.bias;
  for (int64_t r = 0; any && r < p.rows; ++r) {
    const auto* const first = static_cast<const float*>(p.accumulate ? p.c[r] : p.bias);
    std::copy_n(first + p.shape.first_column, p.shape.columns, sums + r * stride);
  }
  return any;
}

// Multiplies into a buffer of sums, kRows rows at a time, then writes C: in 16 bits it is added to
// last, and rounded once.
template <bool rounded>
void multiply_buffered(PanelProduct p) {
  alignas(64) float sums[kRows * 64];
  const int64_t stride = p.shape.vectors * 16;
  for (int64_t left = p.rows; left > 0; left -= kRows, p.a += kRows, p.c += kRows) {
    p.rows = std::min(kRows, left);
    if constexpr (rounded) {
      sum(p, sums, stride, false);
      tiles->put_rows(p, sums, stride);
    } else {
      sum(p, sums, stride, put_first_terms(p, sums, stride));
      for (int64_t r = 0; r < p.rows; ++r)
        std::copy_n(sums + r * stride, p.shape.columns,
                    static_cast<float*>(p.c[r]) + p.shape.first_column);
    }
  }
}

void multiply(const PanelProduct& p) {
  constexpr int64_t kNear = 64;  // of rows so far apart, writing the bias costs more than a buffer
  const int64_t stride = common_stride<float>(p.c, p.rows, p.shape.columns);
  const bool adds_bias = p.bias && !p.accumulate;
  if (stride < p.shape.columns || (adds_bias && stride > kNear)) return multiply_buffered<false>(p);
  float* const c = static_cast<float*>(p.c[0]) + p.shape.first_column;
  if (adds_bias) put_first_terms(p, c, stride);
  sum(p, c, stride, p.accumulate || p.bias);
}

// Cases that oneDNN refuses: a sum without terms, or torch.backends.mkldnn.flags(enabled=False).
bool is_refused(const PanelProduct& p) {
  return p.K == 0 || !at::globalContext().userEnabledMkldnn();
}

void multiply_or_tiles(const PanelProduct& p) {
  if (is_refused(p)) return tiles->multiply(p);
  if (p.rounds) return multiply_buffered<true>(p);
  if (p.prefetch) p.prefetch->fetch();
  multiply(p);
}

// int8. The sums are exact; the target's own code scales them. An AMX tile has 16 rows, so few rows
// are left to our own tiles, which read the same panels and give the same bits.
void multiply_int8(const PanelProduct& product) {
  constexpr int64_t kRowsWorthACall = 8;
  if (product.rows < kRowsWorthACall || !at::globalContext().userEnabledMkldnn())
    return int8_tiles->multiply(product);
  PanelProduct p = product;
  alignas(64) int32_t sums[kRows * 64];
  const int64_t width = p.shape.vectors * 16, K = round_up(p.K, int8_tiles->padding);
  const auto* const panel = static_cast<const signed char*>(p.panel) + width * int8_tiles->header;
  for (int64_t left = p.rows; left > 0; left -= kRows, p.a += kRows, p.c += kRows) {
    p.rows = std::min(kRows, left);
    const Factor<unsigned char> a(p.a, p.rows, kInt8RowHeader, K, K);
    brgemm(p.rows, width, K, a.stride(), width, width, /*add_C=*/false, a.data(), panel, sums);
    int8_tiles->put_rows(p, sums, width);
  }
}

}  // namespace

// What both have: the rows of AMX's tiles, and the context of a thread.
static Product by_onednn(const Product& own, const char* without_amx) {
  Product product = own;
  product.rows = kRows;
  product.instructions = has_amx() ? "amx (oneDNN)" : without_amx;
  product.end_thread = [] { at::native::cpublas::brgemm_release(true); };
  return product;
}

const Product* brgemm_bfloat16(const Product& own) {
  static const Product product = [&own] {
    tiles = &own;
    Product product = by_onednn(own, "avx512_bf16 (oneDNN)");
    product.panel_rows = 2 * kRows;
    product.terms = 32;
    product.panels = product.panels_of_one_row = 1;  // what the micro-kernel takes
    product.bytes_ahead = 256 << 10;
    product.multiply = multiply_or_tiles;
    return product;
  }();
  return &product;
}

const Product* brgemm_int8(const Product& own) {
  static const Product product = [&own] {
    int8_tiles = &own;
    Product product = by_onednn(own, "avx512_vnni (oneDNN)");
    product.multiply = multiply_int8;
    return product;
  }();
  return &product;
}

bool has_amx() {
  static const bool has = at::cpu::init_amx() && at::native::cpublas::could_pack(at::kBFloat16);
  return has;
}
#else
const Product* brgemm_bfloat16(const Product&) { return nullptr; }
const Product* brgemm_int8(const Product&) { return nullptr; }
bool has_amx() { return false; }
#endif

}  // namespace fastlstm
