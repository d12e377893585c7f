// The target AMX: products of bfloat16 and int8, and of float32 as three products of bfloat16.
#if defined(__x86_64__)
#include "cpu/targets/target_pragma.h"
FASTLSTM_TARGET("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,amx-tile,amx-bf16,amx-int8")
#define FASTLSTM_ISA amx
#define FASTLSTM_VECTOR_BYTES 64
#include "cpu/targets/avx512.h"

namespace fastlstm::amx {

// The instructions of AMX. There are eight tile registers with 16 rows of 64 bytes each.
struct Amx {
  template <int t>
  FASTLSTM_INLINE static void load(const void* from, int64_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(t) : "memory");
  }
  template <int t>
  FASTLSTM_INLINE static void store(void* to, int64_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(t) : "memory");
  }
  template <int t>
  FASTLSTM_INLINE static void zero() {
    asm volatile("tilezero %%tmm%c0" ::"i"(t));
  }
  // Adds the product of the tiles a and b to the tile `sum`. An element is a pair of bfloat16 or
  // four int8. The int8 in tile a are unsigned.
  template <typename T, int sum, int a, int b>
  FASTLSTM_INLINE static void multiply_add() {
    if constexpr (sizeof(T) == 2)
      asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(sum), "i"(a), "i"(b));
    else
      asm volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(sum), "i"(a), "i"(b));
  }
  // Sets the number of rows of each tile, if they are not already set.
  static void configure(const int64_t (&rows)[8]) {
    struct alignas(64) {
      uint8_t palette = 1, start = 0, reserved[14] = {};
      uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {};
    } tiles;
    for (int t = 0; t < 8; ++t) tiles.rows[t] = static_cast<uint8_t>(rows[t]);
    if (__builtin_memcmp(tiles.rows, configured, sizeof configured) == 0) return;
    __builtin_memcpy(configured, tiles.rows, sizeof configured);
    asm volatile("ldtilecfg %0" ::"m"(tiles));
  }
  // Frees the tiles, so that the system need not save them.
  static void release() {
    if (!configured[0]) return;
    asm volatile("tilerelease");
    configured[0] = 0;
  }

 private:
  static thread_local uint8_t configured[8];  // rows of each tile; all 0 if tiles are released
};
thread_local uint8_t Amx::configured[8] = {};

}  // namespace fastlstm::amx

#include "cpu/targets/amx_table.h"
FASTLSTM_TARGET_END
#endif
