// Multiplies the rows of many time steps by a matrix, with all threads. Within one time step each
// thread has its own part of a matrix instead (cpu/walk/threads.h).
#pragma once
#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <vector>

#include "cpu/gemm/matrix.h"
#include "cpu/targets/kernels.h"

namespace fastlstm {

// With fewer multiply-adds, waking another thread costs more than it helps.
constexpr int64_t kMultiplyAddsOfAThread = 1 << 19;
// The fewest rows for which it pays that one more thread loads all panels.
constexpr int64_t kRowsOfAThread = 24;

// Divides rows into blocks and calls body(begin, end) for each block. A thread takes the next block
// when it is ready. `multiply_adds`: the work for one row.
void for_row_blocks(const GemmKernels& gemm, int64_t rows, int64_t multiply_adds,
                    const auto& body) {
  constexpr int64_t kBlockRows = 96;
  const int64_t threads = std::min({int64_t(at::get_num_threads()), divide_up(rows, kRowsOfAThread),
                                    1 + rows * multiply_adds / kMultiplyAddsOfAThread});
  // The number of blocks is a multiple of the number of threads. Otherwise all threads would wait
  // for the last block of one thread, which takes a third longer if there are few blocks.
  const int64_t blocks = threads > 0 ? round_up(divide_up(rows, kBlockRows), threads) : 0;
  std::atomic<int64_t> next = 0;
  at::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    const ThreadSeries series(gemm);
    for (int64_t k; (k = next++) < blocks;) body(k * rows / blocks, (k + 1) * rows / blocks);
  });
}

// Multiplies all rows of a by a matrix.
void parallel_gemm(const std::vector<const void*>& a, const Matrix& matrix, const Destination& to);

// Computes c[r] = a[r] * matrix, or c[r] += a[r] * matrix if `accumulate`. Each c[r] is a row [N]
// of T. If T has 16 bits, the float32 sums are rounded once, at the end.
template <typename T>
void parallel_gemm_into(const std::vector<const void*>& a, const Matrix& matrix,
                        const std::vector<void*>& c, bool accumulate);

}  // namespace fastlstm
