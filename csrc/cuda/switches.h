// Parts of the persistent engine that a build may leave out, to measure on a GPU what each is
// worth (docs/cuda.md, "Ablations"). Results do not depend on them.
#pragma once

#if !defined(FASTLSTM_NO_RAW_INPUT)
#define FASTLSTM_NO_RAW_INPUT 0
#endif
#if !defined(FASTLSTM_NO_TWO_GROUPS)
#define FASTLSTM_NO_TWO_GROUPS 0
#endif
#if !defined(FASTLSTM_NO_HOISTING)
#define FASTLSTM_NO_HOISTING 0
#endif
#if !defined(FASTLSTM_NO_GATE_PAIRS)
#define FASTLSTM_NO_GATE_PAIRS 0
#endif
#if !defined(FASTLSTM_NO_PREFETCH)
#define FASTLSTM_NO_PREFETCH 0
#endif
#if !defined(FASTLSTM_NO_PADDING)
#define FASTLSTM_NO_PADDING 0
#endif

namespace fastlstm {

// What a thread loads before it waits for its neighbours stays raw bits until they have come: a
// conversion would wait for that load before the first look.
constexpr bool kRawInput = !FASTLSTM_NO_RAW_INPUT;
// Two groups of loads take turns by name; moving one into the other would wait for both.
constexpr bool kTwoGroups = !FASTLSTM_NO_TWO_GROUPS;
// Pointers are fetched, and addresses computed, before the wait.
constexpr bool kHoisting = !FASTLSTM_NO_HOISTING;
// Two lanes publish four 16-bit gates by one shuffle.
constexpr bool kGatePairs = !FASTLSTM_NO_GATE_PAIRS;
// The exchange buffer is in L2 before it is polled.
constexpr bool kPrefetchExchange = !FASTLSTM_NO_PREFETCH;
// Exchanged rows are padded to whole pieces of 16 bytes. For both compilers: also in CXXFLAGS.
constexpr bool kPadding = !FASTLSTM_NO_PADDING;

}  // namespace fastlstm
