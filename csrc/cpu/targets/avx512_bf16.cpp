// bfloat16 by the dot product instructions of AVX512_BF16.
#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(                                                          \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma"))), \
    apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")
#endif
#define FASTLSTM_ISA avx512_bf16
#define FASTLSTM_VECTOR_BYTES 64
#include "cpu/targets/avx512_bf16.h"
//
#include "cpu/cell/cell_kernels.h"
#include "cpu/products/tile_product.h"

namespace fastlstm {
namespace avx512_bf16 {

extern const Product<bfloat16> product;
const Product<bfloat16> product = bfloat16_product<Target::tile_rows, Target::tile_vectors>();
extern const Cell<bfloat16> cell;
const Cell<bfloat16> cell = {prefetch_forward<bfloat16>, prefetch_backward<bfloat16>,
                             forward_cells<bfloat16, float>, backward_cells<bfloat16, float>};

}  // namespace avx512_bf16
}  // namespace fastlstm
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
