// FASTLSTM_TARGET("avx2,fma"): functions may use these instructions, until FASTLSTM_TARGET_END.
#pragma once

#define FASTLSTM_PRAGMA(...) _Pragma(#__VA_ARGS__)
#if defined(__clang__)
#define FASTLSTM_TARGET(isa) \
  FASTLSTM_PRAGMA(clang attribute push(__attribute__((target(isa))), apply_to = function))
#define FASTLSTM_TARGET_END _Pragma("clang attribute pop")
#else
#define FASTLSTM_TARGET(isa) FASTLSTM_PRAGMA(GCC target(isa))
#define FASTLSTM_TARGET_END
#endif
