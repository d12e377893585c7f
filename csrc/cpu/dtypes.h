// The dtypes on the CPU.
#pragma once
#include "cpu/half.h"
#include "dtype_list.h"

namespace fastlstm {

template <typename T>
struct StateOf;
#define FASTLSTM_STATE(T, A, name) \
  template <>                      \
  struct StateOf<T> {              \
    using type = A;                \
  };
FASTLSTM_FOR_EACH_DTYPE(FASTLSTM_STATE)
#undef FASTLSTM_STATE
template <typename T>
using State_t = typename StateOf<T>::type;

}  // namespace fastlstm
