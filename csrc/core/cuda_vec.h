// Loads and stores consecutive elements, which are acc_t in registers: by 16-byte accesses (narrower ones if
// all elements together are smaller) where the pointer is aligned, element by element where it is not or
// where fewer elements are left.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "core/numeric.h"

namespace aigc {

__device__ inline float to_acc(float x) { return x; }
__device__ inline double to_acc(double x) { return x; }
__device__ inline float to_acc(half x) { return __half2float(__ushort_as_half(x.bits)); }
__device__ inline float to_acc(bfloat16 x) { return __bfloat162float(__ushort_as_bfloat16(x.bits)); }

__device__ inline void store_scalar(float* p, float x) { *p = x; }
__device__ inline void store_scalar(double* p, double x) { *p = x; }
__device__ inline void store_scalar(half* p, float x) { p->bits = __half_as_ushort(__float2half_rn(x)); }
__device__ inline void store_scalar(bfloat16* p, float x) {
  p->bits = __bfloat16_as_ushort(__float2bfloat16_rn(x));
}

template <class T>
__device__ inline acc_t<T> load_scalar(const T* p) {
  return to_acc(*p);
}

// N elements as one object, aligned as the widest accesses to it must be.
template <class T, int N>
struct alignas(N * sizeof(T) < 16 ? N * sizeof(T) : 16) Pack {
  T element[N];
};

template <class T, int N>
__device__ inline bool is_aligned(const void* p) {
  return (reinterpret_cast<uintptr_t>(p) & (alignof(Pack<T, N>) - 1)) == 0;
}

// The first n of N elements; the others are 0.
template <int N, class T>
__device__ inline void load(const T* p, int64_t n, acc_t<T> (&out)[N]) {
  if (n >= N && is_aligned<T, N>(p)) {
    const Pack<T, N> pack = *reinterpret_cast<const Pack<T, N>*>(p);
#pragma unroll
    for (int i = 0; i < N; ++i) out[i] = to_acc(pack.element[i]);
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i) out[i] = i < n ? to_acc(p[i]) : acc_t<T>(0);
  }
}

template <int N, class T>
__device__ inline void store(T* p, int64_t n, const acc_t<T> (&in)[N]) {
  if (n >= N && is_aligned<T, N>(p)) {
    Pack<T, N> pack;
#pragma unroll
    for (int i = 0; i < N; ++i) store_scalar(&pack.element[i], in[i]);
    if constexpr (sizeof(pack) % 16 == 0) {  // explicit 16-byte stores: nvcc splits some assignments
      uint4 words[sizeof(pack) / 16];
      memcpy(words, &pack, sizeof(words));
#pragma unroll
      for (int i = 0; i < int(sizeof(pack) / 16); ++i) __stwb(reinterpret_cast<uint4*>(p) + i, words[i]);
    } else {
      *reinterpret_cast<Pack<T, N>*>(p) = pack;
    }
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i)
      if (i < n) store_scalar(p + i, in[i]);
  }
}

}  // namespace aigc
