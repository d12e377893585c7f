// Functions between FASTLSTM_TARGET("avx2,fma") and FASTLSTM_TARGET_END may use the named
// instruction sets and the compiler's default.
#pragma once

#define FASTLSTM_PRAGMA(...) _Pragma(#__VA_ARGS__)
#if defined(__clang__)
#define FASTLSTM_TARGET(isa) \
  FASTLSTM_PRAGMA(clang attribute push(__attribute__((target(isa))), apply_to = function))
#define FASTLSTM_TARGET_END _Pragma("clang attribute pop")
#else
#if defined(__aarch64__)
#define FASTLSTM_TARGET(isa) FASTLSTM_PRAGMA(GCC target("+" isa))
#else
#define FASTLSTM_TARGET(isa) FASTLSTM_PRAGMA(GCC target(isa))
#endif
#define FASTLSTM_TARGET_END
#endif
