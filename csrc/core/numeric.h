// Storage types and the type that arithmetic on them is done in. No torch, no CUDA headers.
#pragma once

#include <cstdint>
#include <cstring>

namespace aigc {

// The bit patterns of IEEE binary16 and bfloat16; layout-compatible with c10::Half, c10::BFloat16 and CUDA's
// types.
struct half {
  uint16_t bits;
};
struct bfloat16 {
  uint16_t bits;
};

enum class DType : int32_t { float64, float32, float16, bfloat16 };

// Half types accumulate in float32, float64 in float64.
template <class T>
struct accumulate {
  using type = float;
};
template <>
struct accumulate<double> {
  using type = double;
};
template <class T>
using acc_t = typename accumulate<T>::type;

// Calls f with a null pointer of the storage type: f(static_cast<T*>(nullptr)).
template <class F>
inline void dispatch_dtype(DType dtype, F&& f) {
  switch (dtype) {
    case DType::float64:
      f(static_cast<double*>(nullptr));
      break;
    case DType::float32:
      f(static_cast<float*>(nullptr));
      break;
    case DType::float16:
      f(static_cast<half*>(nullptr));
      break;
    case DType::bfloat16:
      f(static_cast<bfloat16*>(nullptr));
      break;
  }
}

}  // namespace aigc
