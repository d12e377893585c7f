// The plans that make_plan returns for some tasks. They show the decisions of the planner, most of
// them on both sides of a limit. If a line differs from the plan, the case "plans/expected" fails
// and prints the right line: copy it here if the planner was changed on purpose. To add a line,
// write only the part before the arrow, which is the task, and copy the line that the case prints.
//
// A heading names a machine of plans.cpp and a decision. A line begins with the number of threads.
//   kind     infer: forward without saving; train: forward that saves for backward; back: backward
//   type     the dtype of the input; after the arrow, the dtype in which the layer is computed
//   T B I H  steps, batch, input size, hidden size
//   options  D: directions; P: projected size; W: format of prepacked weights; as: precision;
//            rows: total_rows of a call that is not dense; resets: has_resets;
//            stepwise: needs_stepwise
//   GEMM     the format of the kernels, or "stepwise" for the stepwise engine
//   grid     unit groups x row groups x directions
//   W_ih     its form: in panels, in panels on demand, or in place; W_hh: the same
//   ahead    steps_ahead
//   chunk    chunk_steps
//   buffer   buffer_rows x buffer_unit_vectors
#pragma once

namespace {

constexpr const char* kExpectedPlans = R"(
   kind  type   T   B    I    H  options        -> GEMM   type grid   W_ih   W_hh ahead chunk buffer
Intel with AMX: the stepwise engine runs if it is needed or a size is 0
 1 infer f32   20   8   64   64  stepwise       -> stepwise f32
 1 train bf16  20   8   64   64  stepwise       -> stepwise bf16
 1 infer f32   20   8    0   64                 -> stepwise f32
 1 infer f32   20   8   64    0                 -> stepwise f32
 1 infer f32   20   8   64   64  P=0            -> stepwise f32
 1 infer f32   20   8    1    1  P=1            -> f32    f32  1x1x1  panels panels  20    20 12x1
SSE2: the stepwise engine converts 16-bit types if it has no kernels for them
 1 train bf16  20   8   64   64  stepwise       -> stepwise f32
Intel with AMX: kernels and dtype
 1 infer f32    2  64   64   64  as=tf32        -> bf16x2 f32  1x1x1  panels panels   0     2 64x1
 1 train f32    1  64   64   64  as=tf32        -> f32    f32  1x1x1  demand demand   0     1 64x1
 1 infer f32    2  64   64   64  as=tf32 P=32   -> bf16x2 f32  1x1x1  panels panels   0     2 64x1
 1 back  f32    2  64   64   64  as=tf32        -> bf16x2 f32  1x1x1  panels panels   0     2 64x1
 1 infer f64    2  64   64   64  as=tf32        -> f64    f64  1x1x1  panels panels   0     2 48x1
 1 infer f32    2  64   64   64  W=f32 as=tf32  -> f32    f32  1x1x1  panels panels   0     2 48x1
 1 back  f32    2  64   64   64  as=bf16        -> bf16   f32  1x1x1  panels panels   0     2 64x1
 1 back  f32    2  64   64   64  as=bf16 P=32   -> f32    f32  1x1x1  place  panels   0     2 48x1
 1 infer bf16   2  64   64   64  P=32           -> bf16   bf16 1x1x1  panels panels   0     2 64x1
 1 infer f16    1  64   64   64                 -> f32    f32  1x1x1  demand demand   0     1 64x1
 1 infer f16    2  64   64   64                 -> f32    f16  1x1x1  panels panels   0     2 48x1
 1 infer f16    1  64   64   64  resets         -> f32    f16  1x1x1  panels panels   0     1 48x1
 1 infer f16    1  64   64   64  rows=60        -> f32    f16  1x1x1  panels panels   0     1 48x1
 1 infer f16    2  64   64   64  P=32           -> f32    f32  1x1x1  panels panels   0     2 48x1
 1 infer f16    2  64   64   64  W=f32          -> f32    f16  1x1x1  panels panels   0     2 48x1
 1 infer f16    1  64   64   64  W=f32          -> f32    f32  1x1x1  panels panels   0     1 48x1
 1 infer f16    2  64   64   64  W=f32 P=32     -> f32    f32  1x1x1  panels panels   0     2 48x1
 1 infer f16    2  64   64   64  W=bf16         -> bf16   f32  1x1x1  panels panels   0     2 64x1
 1 infer bf16   1  64   64   64  W=bf16         -> bf16   bf16 1x1x1  panels panels   0     1 64x1
 1 infer bf16   2  64   64   64  W=int8         -> int8   f32  1x1x1  panels panels   0     2 64x1
 1 infer f32    2   7   64   64  W=int8         -> int8   f32  1x1x1  panels panels   2     2 12x1
 1 infer f32    2   8   64   64  W=int8         -> int8   f32  1x1x1  panels panels   2     2 64x1
AVX2: a single step of few rows multiplies 16-bit weights in place
 1 infer bf16   1  16   64   64                 -> bf16   bf16 1x1x1  place  place    0     1 16x8
 1 train bf16   1  16   64   64                 -> bf16   bf16 1x1x1  place  place    0     1 16x8
 1 infer bf16   1  16   64   64  P=32           -> f32    f32  1x1x1  place  place    0     1 16x8
 1 infer bf16   1  17   64   64                 -> f32    f32  1x1x1  demand demand   0     1 17x1
 1 infer f16    1   6   64   64                 -> f16    f16  1x1x1  place  place    0     1 6x8
 1 infer f16    1   7   64   64                 -> f32    f32  1x1x1  place  place    0     1 7x8
Intel with AVX-512: kernels and dtype, without training kernels for bfloat16
 1 infer f32    2  64   64   64  as=bf16        -> f32    f32  1x1x1  panels panels   0     2 48x1
 1 infer bf16   2  64   64   64                 -> f32    bf16 1x1x1  panels panels   0     2 48x1
 1 infer bf16   2  64   64   64  W=bf16         -> bf16   f32  1x1x1  panels panels   0     2 48x1
Intel with AVX-512: a walk uses only as many threads as get enough work
 4 infer f32   20   1   64  161                 -> f32    f32  1x1x1  demand panels  20    20 6x1
 4 infer f32   20   1   64  162                 -> f32    f32  2x1x1  demand panels  20    20 6x1
 4 infer f32   20   1   64  162  D=2            -> f32    f32  1x1x2  demand panels  20    20 6x1
 4 infer f32   20   1   64  220  D=2            -> f32    f32  2x1x1  demand panels  20    20 6x1
16 infer f32   20  47  640   32                 -> f32    f32  1x2x1  panels panels  20    20 24x1
16 infer f32   20  48  640   32                 -> f32    f32  1x16x1 panels panels  20    20 6x1
16 back  f32   20  48  640   32                 -> f32    f32  1x2x1  panels panels   0    20 24x1
Intel with AVX-512: the threads of a walk divide units and rows
 4 infer f32   20   5   64  128                 -> f32    f32  2x2x1  demand panels  20    20 6x1
 4 infer f32   20   9   64  128                 -> f32    f32  1x3x1  demand panels  20    20 6x1
64 infer f32   20   3   64 1024                 -> f32    f32  22x1x1 demand panels  20    20 6x1
AMD with AVX-512: the speed of the kernels changes the grid
16 infer f32   20   8   64  512                 -> f32    f32  8x2x1  demand panels  20    20 6x1
16 infer f32   20   8   64  512  as=bf16        -> bf16   f32  5x3x1  panels panels  20    20 6x1
Intel with AMX: tiles multiply many rows at a time, so the threads divide units
16 infer f32   20  64  512 1024  as=tf32        -> bf16x2 f32  16x1x1 panels panels   0    12 64x1
16 infer bf16  20  64  512 1024                 -> bf16   bf16 16x1x1 panels panels   0    12 64x1
16 infer bf16  20  64   64  128                 -> bf16   bf16 8x1x1  panels panels   0    16 64x1
Intel with AVX-512: the threads of a single step divide units, then rows
 4 infer f32    1   1   64  225                 -> f32    f32  1x1x1  place  place    0     1 1x15
 4 infer f32    1   1   64  226                 -> f32    f32  2x1x1  place  place    0     1 1x8
16 infer f32    1 127   64   64                 -> f32    f32  4x1x1  demand demand   0     1 127x1
16 infer f32    1 128   64   64                 -> f32    f32  4x2x1  demand demand   0     1 64x1
 4 infer f32    1 128   64  128                 -> f32    f32  4x1x1  demand demand   0     1 128x1
16 infer f32    1   4  176   64  W=f32          -> f32    f32  1x1x1  panels panels   0     1 6x1
16 infer f32    1   5  176   64  W=f32          -> f32    f32  3x1x1  panels panels   0     1 6x1
16 infer f32    1   5  176   64  rows=4 W=f32   -> f32    f32  1x1x1  panels panels   1     1 6x1
AVX2: a single step, too, uses only as many threads as get enough work
16 infer f32    1 128    4   16                 -> f32    f32  1x2x1  demand demand   0     1 64x1
Intel with AVX-512: forms of a matrix that one step reads
 1 infer f32    1  16   64 1024                 -> f32    f32  1x1x1  place  place    0     1 16x60
 1 infer f32    1  17   64 1024                 -> f32    f32  1x1x1  demand demand   0     1 17x1
 1 back  f32    1 192   64   64                 -> f32    f32  1x1x1  place  place    0     1 48x1
 1 back  f32    1 193   64   64                 -> f32    f32  1x1x1  demand demand   0     1 48x1
 1 back  f32    1 768   64   64                 -> f32    f32  1x1x1  demand demand   0     1 48x1
 1 back  f32    1 769   64   64                 -> f32    f32  1x1x1  panels panels   0     1 48x1
Intel with AMX: forms of a matrix if the kernels encode rows, or need many rows
 1 infer bf16   1   5   64   64                 -> bf16   bf16 1x1x1  place  place    0     1 5x4
 1 infer bf16   1   6   64   64                 -> bf16   bf16 1x1x1  demand demand   0     1 6x1
 1 infer bf16   1   5   64   64  rows=4         -> bf16   bf16 1x1x1  demand demand   0     1 5x1
 1 infer f32    1   5   64   64  as=bf16        -> f32    f32  1x1x1  place  place    0     1 5x4
 1 infer f32    1   5   64   64  as=bf16 rows=4 -> bf16   f32  1x1x1  panels panels   1     1 64x1
 1 train f32    1   5   64   64  as=bf16        -> bf16   f32  1x1x1  panels panels   1     1 64x1
 1 back  f32    1   5   64   64  as=bf16        -> bf16   f32  1x1x1  demand demand   1     1 64x1
 1 back  f32    2   5  512  512  as=bf16        -> bf16   f32  1x1x1  panels panels   2     2 64x1
 1 back  bf16   1   5   64   64                 -> bf16   bf16 1x1x1  place  place    1     1 64x1
 1 back  bf16   1   6   64   64                 -> bf16   bf16 1x1x1  demand demand   1     1 64x1
 1 back  bf16   1   5   64   64  rows=4         -> bf16   bf16 1x1x1  demand demand   1     1 64x1
AMD with AVX-512: a single step backward reads bfloat16 in place
 1 back  bf16   1  16   64   64                 -> bf16   bf16 1x1x1  place  place    0     1 18x1
 1 back  bf16   1  17   64   64                 -> bf16   bf16 1x1x1  demand demand   0     1 18x1
 1 back  bf16   2   8   64   64                 -> bf16   bf16 1x1x1  panels panels   2     2 12x1
Intel with AVX-512: forms of a matrix that several steps read
 1 infer f32    3   8   64   64                 -> f32    f32  1x1x1  panels place    3     3 8x4
 1 infer f32    4   8   64   64                 -> f32    f32  1x1x1  panels panels   4     4 12x1
 1 infer f32    7   8  512  512                 -> f32    f32  1x1x1  demand place    7     7 8x32
 1 infer f32    8   8  512  512                 -> f32    f32  1x1x1  demand panels   8     8 12x1
 1 infer f32   16   8 1024 1024                 -> f32    f32  1x1x1  demand place   16    16 8x64
 1 infer f32   17   8 1024 1024                 -> f32    f32  1x1x1  demand panels  17    17 12x1
 1 infer f32    2   9  255  255                 -> f32    f32  1x1x1  panels panels   2     2 12x1
 1 infer f32    2   9  256  256                 -> f32    f32  1x1x1  demand demand   2     2 9x1
 1 infer f32    3   9  256  256                 -> f32    f32  1x1x1  demand panels   3     3 12x1
AMD with AVX-512: two directions at the same time, unless their weights fill the L3 cache
 2 infer f32  100   2    8  512  D=2            -> f32    f32  1x1x2  panels panels  64   100 6x1
 2 infer f32  100   2    8 1018  D=2            -> f32    f32  2x1x1  panels panels  64   100 6x1
SSE2: forms of a matrix in backward
 1 back  f32    7   8 1494 1494                 -> f32    f32  1x1x1  place  place    7     7 8x1
 1 back  f32    2  95 1040 1040                 -> f32    f32  1x1x1  place  demand   2     2 12x1
 1 back  f32    3  95 1040 1040                 -> f32    f32  1x1x1  demand panels   3     3 12x1
Intel with AVX-512: steps ahead
 1 infer f32   20   5    4   64                 -> f32    f32  1x1x1  panels panels  20    20 6x1
 1 infer f32   20   6    4   64                 -> f32    f32  1x1x1  panels panels   0    20 6x1
 1 infer f32   20   6    5   64                 -> f32    f32  1x1x1  panels panels  20    20 6x1
 1 infer f32    2  64  127   64                 -> f32    f32  1x1x1  panels panels   0     2 48x1
 1 infer f32    2  64  128   64                 -> f32    f32  1x1x1  panels panels   2     2 48x1
 1 infer f32   12  64 1024   64                 -> f32    f32  1x1x1  demand panels  12    12 48x1
 1 infer f32   13  64 1024   64                 -> f32    f32  1x1x1  panels panels   0    13 48x1
 1 infer f32  100   8   64  300                 -> f32    f32  1x1x1  panels panels  54    27 12x1
 4 infer f32  100   8   64  300  D=2            -> f32    f32  2x1x2  panels panels  27    27 12x1
 1 infer f64  100   8   64  300                 -> f64    f64  1x1x1  panels panels   5    22 12x1
 1 infer f32  128   1   64 2000                 -> f32    f32  1x1x1  demand panels 128   128 6x1
 1 infer f32  129   1   64 2000                 -> f32    f32  1x1x1  demand panels  65   129 6x1
AMD with AVX-512: steps ahead if weights fill the L3 cache, unless rows are many
 1 infer f32   40  20  716  512                 -> f32    f32  1x1x1  panels panels   0    30 12x1
 1 infer f32   71  20  717  512                 -> f32    f32  1x1x1  panels panels  71    30 12x1
 1 infer f32   72  20  717  512                 -> f32    f32  1x1x1  panels panels  12    30 12x1
 1 infer f32   71  20  717  512  W=f32          -> f32    f32  1x1x1  panels panels  71    30 12x1
 1 infer f32   72  20  717  512  W=f32          -> f32    f32  1x1x1  panels panels  12    30 12x1
 1 infer f32    2  20  717  512  W=f32          -> f32    f32  1x1x1  panels panels   2     2 12x1
 1 infer bf16  71  20 1200  800  W=bf16         -> bf16   bf16 1x1x1  panels panels   8    50 12x1
 1 infer f32   40  47  717  512                 -> f32    f32  1x1x1  panels panels   5    13 12x1
 1 infer f32   40  48  717  512                 -> f32    f32  1x1x1  panels panels   0    12 12x1
 2 infer f32   40  20  300  512  D=2            -> f32    f32  1x1x2  panels panels   6    20 12x1
NEON: no tiles split float32
 1 infer f32    2  64   64   64  as=tf32        -> f32    f32  1x1x1  panels panels   2     2 50x1
AVX2: steps ahead without a limit of rows
 1 infer f32   20  64   65 1024                 -> f32    f32  1x1x1  panels panels   2     8 12x1
 1 infer f32   20  65   65 1024                 -> f32    f32  1x1x1  panels panels   0     8 12x1
Intel with AVX-512: rows of a buffer, and steps of a chunk
 1 infer f32   20  47   64  256                 -> f32    f32  1x1x1  panels panels  10     5 48x1
 1 infer f32   20  48   64  257                 -> f32    f32  1x1x1  panels panels   0     5 12x1
 1 back  f32  100   8   64  300                 -> f32    f32  1x1x1  panels panels  54    27 12x1
 1 back  f64  200   1   64  128                 -> f64    f64  1x1x1  panels panels  96    96 6x1
 1 back  f32  100 600   64 1024                 -> f32    f32  1x1x1  panels panels   0     1 12x1
)";

}  // namespace
