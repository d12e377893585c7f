// The products of bfloat16 and int8 by oneDNN's micro-kernel, which uses AMX where there is AMX.
#pragma once
#include "cpu/products/product.h"

namespace fastlstm {

// What packs, transposes and sums comes from `base`, whose panels of pairs the micro-kernel takes
// as they are. Nothing where this torch has no such micro-kernel.
const Product<bfloat16>* brgemm_product(const Product<bfloat16>& base);
const Product<int8>* brgemm_product(const Product<int8>& base);

// Whether they use AMX: whether the processor has it, and the system lets this process use it.
bool has_amx();

}  // namespace fastlstm
