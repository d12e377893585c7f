// The products of bfloat16 and int8 by oneDNN's micro-kernel, which uses AMX where there is AMX.
#pragma once
#include "cpu/products/product.h"

namespace fastlstm {

// What packs, transposes and sums is our own product for AVX-512, whose panels the micro-kernel
// takes as they are. Nothing where this torch has no such micro-kernel.
const Product* brgemm_bfloat16(const Product& own);
const Product* brgemm_int8(const Product& own);

// Whether they use AMX: whether the processor has it, and the system lets this process use it.
bool has_amx();

}  // namespace fastlstm
