// bfloat16, int8, and float32 by products of bfloat16, on AMX's tiles.
#if defined(__x86_64__)
#include "cpu/targets/begin.h"
FASTLSTM_TARGET("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,amx-tile,amx-bf16,amx-int8")
#define FASTLSTM_ISA amx
#define FASTLSTM_VECTOR_BYTES 64
#include "cpu/targets/avx512.h"

namespace fastlstm::amx {

// Eight registers of 16 rows of 64 bytes each.
struct Tiles {
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
  // sum += a b, of pairs of bfloat16, or of fours of int8, unsigned in a.
  template <typename T, int sum, int a, int b>
  FASTLSTM_INLINE static void multiply_add() {
    if constexpr (sizeof(T) == 2)
      asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(sum), "i"(a), "i"(b));
    else
      asm volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(sum), "i"(a), "i"(b));
  }
  // So many rows in the two tiles of A, 4 and 5, and in those of their sums, 0 to 3; or, if
  // `lower_rows` is 0, in 4 and in all sums. The others, of B, are full.
  FASTLSTM_INLINE static void configure(int64_t upper_rows, int64_t lower_rows) {
    if (upper_rows == upper && lower_rows == lower) return;
    upper = static_cast<uint8_t>(upper_rows), lower = static_cast<uint8_t>(lower_rows);
    const uint8_t last = lower ? lower : upper, fifth = lower ? lower : 16;
    struct alignas(64) {
      uint8_t palette = 1, start = 0, reserved[14] = {};
      uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16];
    } tiles{.rows = {upper, upper, last, last, upper, fifth, 16, 16}};
    asm volatile("ldtilecfg %0" ::"m"(tiles));
  }
  static void release() {
    if (!upper) return;
    asm volatile("tilerelease");
    upper = lower = 0;
  }

 private:
  static thread_local uint8_t upper, lower;  // as configured, 0 if the tiles are released
};
thread_local uint8_t Tiles::upper = 0, Tiles::lower = 0;

}  // namespace fastlstm::amx

#include "cpu/products/split_float32.h"
#include "cpu/targets/tiles_table.h"
FASTLSTM_TARGET_END
#endif
