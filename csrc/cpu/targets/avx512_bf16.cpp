// bfloat16 by the dot product instructions of AVX512_BF16.
#if defined(__x86_64__)
#include "cpu/targets/begin.h"
FASTLSTM_TARGET("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")
#define FASTLSTM_ISA avx512_bf16
#define FASTLSTM_VECTOR_BYTES 64
#include "cpu/targets/avx512_bf16.h"
//
#include "cpu/cell/cell_kernels.h"
#include "cpu/products/tile_product.h"
#include "cpu/targets/kernels.h"

namespace fastlstm::avx512_bf16 {

const Product<bfloat16> product =
    with_rounding(tile_product<Target::tile_rows, Target::tile_vectors, bfloat16, float>());
const Cell<bfloat16> cell = {prefetch_forward<bfloat16>, prefetch_backward<bfloat16>,
                             forward_cells<bfloat16, float>, backward_cells<bfloat16, float>};

}  // namespace fastlstm::avx512_bf16
FASTLSTM_TARGET_END
#endif
