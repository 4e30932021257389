// Eight consecutive elements in registers, as acc_t: 16-byte accesses where the pointer allows it, element by
// element where it does not or where fewer than eight are left.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "core/numeric.h"

namespace aigc {

__device__ inline float to_acc(float x) { return x; }
__device__ inline double to_acc(double x) { return x; }
__device__ inline float to_acc(half x) { return __half2float(__ushort_as_half(x.bits)); }
__device__ inline float to_acc(bfloat16 x) { return __bfloat162float(__ushort_as_bfloat16(x.bits)); }

__device__ inline void from_acc(float* p, float x) { *p = x; }
__device__ inline void from_acc(double* p, double x) { *p = x; }
__device__ inline void from_acc(half* p, float x) { p->bits = __half_as_ushort(__float2half_rn(x)); }
__device__ inline void from_acc(bfloat16* p, float x) {
  p->bits = __bfloat16_as_ushort(__float2bfloat16_rn(x));
}

template <class T>
struct alignas(16) Pack8 {
  T element[8];
};

__device__ inline bool aligned16(const void* p) { return (reinterpret_cast<uintptr_t>(p) & 15) == 0; }

template <class T>
__device__ inline void load8(const T* p, int n, acc_t<T> (&out)[8]) {
  if (n >= 8 && aligned16(p)) {
    const Pack8<T> pack = *reinterpret_cast<const Pack8<T>*>(p);
#pragma unroll
    for (int i = 0; i < 8; ++i) out[i] = to_acc(pack.element[i]);
  } else {
#pragma unroll
    for (int i = 0; i < 8; ++i) out[i] = i < n ? to_acc(p[i]) : acc_t<T>(0);
  }
}

template <class T>
__device__ inline void store8(T* p, int n, const acc_t<T> (&in)[8]) {
  if (n >= 8 && aligned16(p)) {
    Pack8<T> pack;
#pragma unroll
    for (int i = 0; i < 8; ++i) from_acc(&pack.element[i], in[i]);
    *reinterpret_cast<Pack8<T>*>(p) = pack;
  } else {
#pragma unroll
    for (int i = 0; i < 8; ++i)
      if (i < n) from_acc(p + i, in[i]);
  }
}

}  // namespace aigc
