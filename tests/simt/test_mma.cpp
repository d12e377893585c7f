// The register layouts of mma, taken from the tables of the PTX manual ("Matrix Fragments for
// mma.m16n8k16" and "mma.m16n8k8"), against a plain matrix product; and the rounding to TF32.
#include "device.h"
#include "harness.h"

namespace {

using fastlstm::Bits128;
using testing::Case;
using testing::check;

struct Place {
  int row, column;
};

// i counts a lane's elements in the order of its registers, lower half first.
Place a16(int lane, int i) {
  const int group = lane >> 2, in_group = lane & 3;
  return {(0 <= i && i < 2) || (4 <= i && i < 6) ? group : group + 8,
          i < 4 ? in_group * 2 + (i & 1) : in_group * 2 + (i & 1) + 8};
}
Place b16(int lane, int i) {
  const int group = lane >> 2, in_group = lane & 3;
  return {i < 2 ? in_group * 2 + (i & 1) : in_group * 2 + (i & 1) + 8, group};
}
Place a8(int lane, int i) {
  const int group = lane >> 2, in_group = lane & 3;
  return {i == 0 || i == 2 ? group : group + 8, i == 0 || i == 1 ? in_group : in_group + 4};
}
Place b8(int lane, int i) { return {i == 0 ? lane & 3 : (lane & 3) + 4, lane >> 2}; }
Place c(int lane, int i) {
  const int group = lane >> 2, in_group = lane & 3;
  return {i < 2 ? group : group + 8, in_group * 2 + (i & 1)};
}

void compare(const float (&a)[16][16], const float (&b)[16][8], const float (&d)[16][8],
             int depth) {
  for (int r = 0; r < 16; ++r)
    for (int n = 0; n < 8; ++n) {
      double expected = 1;  // what D held before
      for (int k = 0; k < depth; ++k) expected += a[r][k] * b[k][n];
      check(d[r][n] == expected, "D[", r, "][", n, "] = ", d[r][n], ", expected ", expected);
    }
}

// Small integers: exact in every dtype, and no two places of A or B can be swapped unnoticed.
void fill(float (&a)[16][16], float (&b)[16][8], int depth) {
  for (int r = 0; r < 16; ++r)
    for (int k = 0; k < depth; ++k) a[r][k] = static_cast<float>((7 * r + 3 * k + r * k) % 23 - 11);
  for (int k = 0; k < depth; ++k)
    for (int n = 0; n < 8; ++n) b[k][n] = static_cast<float>((5 * k + 11 * n + k * n) % 19 - 9);
}

template <typename H, typename Mma>
void check_16bit(Mma mma) {
  float a[16][16], b[16][8], d[16][8];
  fill(a, b, 16);
  simt::launch(dim3(1), dim3(32), 0, simt::kBlocksInTurn, [&] {
    const int lane = threadIdx.x;
    Bits128 words{};
    uint32_t second[2] = {};
    for (int i = 0; i < 8; ++i)
      words.word[i / 2] |= uint32_t(H(a[a16(lane, i).row][a16(lane, i).column]).bits)
                           << 16 * (i % 2);
    for (int i = 0; i < 4; ++i)
      second[i / 2] |= uint32_t(H(b[b16(lane, i).row][b16(lane, i).column]).bits) << 16 * (i % 2);
    float sum[4] = {1, 1, 1, 1};
    mma(sum, words, second[0], second[1]);
    for (int i = 0; i < 4; ++i) d[c(lane, i).row][c(lane, i).column] = sum[i];
  });
  compare(a, b, d, 16);
}

const Case bfloat("mma/bfloat16 layout", [] {
  check_16bit<simt::bfloat16>([](auto&... args) { fastlstm::mma_bfloat16(args...); });
});
const Case half("mma/float16 layout", [] {
  check_16bit<simt::float16>([](auto&... args) { fastlstm::mma_float16(args...); });
});
const Case tf32("mma/tf32 layout", [] {
  float a[16][16], b[16][8], d[16][8];
  fill(a, b, 8);
  simt::launch(dim3(1), dim3(32), 0, simt::kBlocksInTurn, [&] {
    const int lane = threadIdx.x;
    const auto word = [](float x) { return simt::bits_of<uint32_t>(x); };
    Bits128 words;
    for (int i = 0; i < 4; ++i) words.word[i] = word(a[a8(lane, i).row][a8(lane, i).column]);
    float sum[4] = {1, 1, 1, 1};
    fastlstm::mma_tf32(sum, words, word(b[b8(lane, 0).row][b8(lane, 0).column]),
                       word(b[b8(lane, 1).row][b8(lane, 1).column]));
    for (int i = 0; i < 4; ++i) d[c(lane, i).row][c(lane, i).column] = sum[i];
  });
  compare(a, b, d, 8);
});

const Case rounding("mma/rounding to tf32", [] {
  const auto rounded = [](double x) {
    return simt::bits_of<float>(fastlstm::to_tf32(static_cast<float>(x)));
  };
  const double ulp = 0x1p-10;
  for (int n = 0; n < 1024; ++n)
    for (double sign : {1.0, -1.0}) {
      const double x = 1 + n * ulp;
      check(rounded(sign * x) == sign * x, "a TF32 value stays");
      check(rounded(sign * (x + 0.49 * ulp)) == sign * x, "below the middle");
      check(rounded(sign * (x + 0.5 * ulp)) == sign * (x + ulp), "ties go away from zero");
    }
  check(std::isnan(rounded(std::nan(""))) && std::isinf(rounded(1.0 / 0.0)), "NaN and infinity");
});

}  // namespace
