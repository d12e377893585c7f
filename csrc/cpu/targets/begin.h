// FASTLSTM_TARGET("avx2,fma"): functions may use these instructions, until FASTLSTM_TARGET_END. On
// arm64 they are added to those that the compiler uses anyway.
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
