// What a thread computes with CUDA's own functions, for tests/simt/test_simt.py: prints the numbers that a
// kernel writes. nvcc compiles this file as well, so the stand-in has no function that CUDA does not have.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdio>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "core/cuda_launch.h"
#include "core/cuda_shared.h"

namespace {

using aigc::SharedArray;

// 64 threads at once work on memory of each type; then the results are written.
__global__ void atomics(double* out) {
  __shared__ SharedArray<int, 8> ints;
  __shared__ SharedArray<unsigned, 8> unsigneds;
  __shared__ SharedArray<unsigned long long, 4> longs;
  __shared__ SharedArray<float, 2> floats;
  __shared__ SharedArray<double, 1> doubles;
  __shared__ SharedArray<int, 64> seen;
  const int i = int(threadIdx.x);
  seen[i] = 0;
  if (i < 8) ints[i] = i == 6 ? -1 : 0, unsigneds[i] = i == 5 ? 7u : 0;
  if (i < 4) longs[i] = 0;
  if (i < 2) floats[i] = 0;
  if (i == 0) doubles[0] = 0;
  __syncthreads();
  seen[atomicAdd(&ints[0], 1)] = 1;  // every old value once
  atomicSub(&ints[1], i);
  atomicMin(&ints[2], i - 40);
  atomicMax(&ints[3], i - 40);
  atomicOr(&ints[4], 1 << i % 32);
  atomicXor(&ints[5], i);
  atomicAnd(&ints[6], ~(1 << i % 32));
  for (int old = ints[7], assumed = old - 1; old != assumed;) {
    assumed = old;
    old = atomicCAS(&ints[7], assumed, assumed + 2);
  }
  atomicInc(&unsigneds[0], 9);
  atomicDec(&unsigneds[1], 9);
  atomicSub(&unsigneds[2], 1);
  atomicMax(&unsigneds[3], 0xfffffff0u + unsigned(i % 8));
  atomicMin(&unsigneds[5], unsigned(i) + 3);
  atomicAdd(&longs[0], 1ull << 40);
  atomicMax(&longs[1], 1ull << i % 50);
  atomicAdd(&floats[0], 0.5f);
  if (i == 0) floats[1] = atomicExch(&floats[0], 1.0f) >= 0 ? 1.0f : 0.0f;
  atomicAdd(&doubles[0], 0.25);
  __threadfence();
  __threadfence_block();
  __syncthreads();
  if (i > 0) return;
  for (int k = 0; k < 8; ++k) *out++ = ints[k];
  for (int k = 0; k < 4; ++k) *out++ = unsigneds[k];
  *out++ = unsigneds[5];
  *out++ = double(longs[0]);
  *out++ = double(longs[1]);
  *out++ = floats[1];
  *out++ = doubles[0];
  int all = 0;
  for (int k = 0; k < 64; ++k) all += seen[k];
  *out++ = all;
}

__global__ void bits(double* out) {
  *out++ = __popc(0xf0f0u);
  *out++ = __popcll(0xf0f0000000000001ull);
  *out++ = __clz(0);
  *out++ = __clz(1 << 20);
  *out++ = __clzll(1ll << 40);
  *out++ = __ffs(0);
  *out++ = __ffs(0x50);
  *out++ = __ffsll(1ll << 40);
  *out++ = __brev(0x80000003u);
  *out++ = __umulhi(0xffffffffu, 0xffffffffu);
  *out++ = __mulhi(-1, 5);
  *out++ = __float_as_uint(1.0f);
  *out++ = __float_as_int(-0.0f);
  *out++ = __uint_as_float(0x40490fdbu);
  *out++ = __int_as_float(0x3f800000);
  *out++ = double(__double_as_longlong(2.0));
  *out++ = __longlong_as_double(0x4000000000000000ll);
  *out++ = min(2, 3) + max(2.5f, __int_as_float(0x7fc00000)) + max(4l, 5l);
  *out++ =
      __saturatef(-1.0f) + __saturatef(0.25f) + __saturatef(3.0f) + __saturatef(__int_as_float(0x7fc00000));
}

// Arguments and results in turn.
__global__ void approximations(double* out) {
  for (int i = 0; i < 64; ++i) {
    const float x = 0.40625f + i * 0.03125f, y = (i - 32) * 2.5f + 1;
    const float values[] = {x, __logf(x), __log2f(x),      rsqrtf(x),       __frsqrt_rn(x), __frcp_rn(x),
                            y, __expf(y), __powf(x, 3.0f), __fdividef(y, x)};
    for (const float value : values) *out++ = value;
  }
  *out++ = __fdividef(1.0f, 0x1.8p126f);
  const float one = 1 + 0x1p-12f;
  *out++ = __fsub_rn(__fmul_rn(one, one), 1 + 0x1p-11f);  // rounded twice
  *out++ = __fmaf_rn(one, one, -1 - 0x1p-11f);            // rounded once
}

__global__ void vectors(double* out) {
  __shared__ SharedArray<float4, 2> four;
  four[0] = make_float4(1, 2, 3, 4);
  const float2 two = *reinterpret_cast<const float2*>(&four[0].z);
  const double2 d = make_double2(0.5, 0.25);
  const int4 i = make_int4(1, 2, 3, 4);
  const uint2 u = make_uint2(5, 6);
  const ushort4 s = make_ushort4(7, 8, 9, 10);
  const uchar4 c = make_uchar4(11, 12, 13, 14);
  __stcs(&four[1], make_float4(5, 6, 7, 8));
  *out++ = two.x + 10 * two.y;
  *out++ = d.x + d.y;
  *out++ = i.w + u.y + s.w + c.w;
  *out++ = four[1].w;
  *out = __ldg(out - 4) + __ldcs(out - 3);
}
#define SAME_LAYOUT(T, size, alignment) static_assert(sizeof(T) == size && alignof(T) == alignment)
SAME_LAYOUT(float2, 8, 8);
SAME_LAYOUT(float3, 12, 4);
SAME_LAYOUT(float4, 16, 16);
SAME_LAYOUT(double2, 16, 16);
SAME_LAYOUT(int2, 8, 8);
SAME_LAYOUT(int4, 16, 16);
SAME_LAYOUT(uint2, 8, 8);
SAME_LAYOUT(uint4, 16, 16);
SAME_LAYOUT(ushort2, 4, 4);
SAME_LAYOUT(ushort4, 8, 8);
SAME_LAYOUT(uchar4, 4, 4);
SAME_LAYOUT(longlong2, 16, 16);
SAME_LAYOUT(half2, 4, 4);
SAME_LAYOUT(__nv_bfloat162, 4, 4);

__device__ half from_bits(unsigned short bits, half) { return __ushort_as_half(bits); }
__device__ __nv_bfloat16 from_bits(unsigned short bits, __nv_bfloat16) { return __ushort_as_bfloat16(bits); }
__device__ half2 pair(half x, half y) { return __halves2half2(x, y); }
__device__ __nv_bfloat162 pair(__nv_bfloat16 x, __nv_bfloat16 y) { return __halves2bfloat162(x, y); }

// Bit patterns across all finite numbers of a 16-bit type, and the results of the operations for every pair
// of them.
constexpr int kPatterns = 42;
template <class T>
__device__ T pattern(int i) {
  return from_bits(static_cast<unsigned short>((i * 774 + i % 3) | (i % 2) << 15), T());
}
template <class T>
__global__ void narrow_operations(double* out) {
  for (int i = 0; i < kPatterns; ++i)
    for (int j = 0; j < kPatterns; ++j) {
      const T a = pattern<T>(i), b = pattern<T>(j);
      const T c = pattern<T>((i * 5 + j * 11) % kPatterns);
      const auto product = __hmul2(pair(a, b), pair(b, c));
      const auto fma = __hfma2(pair(c, a), pair(c, b), pair(c, c));
      const auto sum = pair(a, b) + pair(b, a);
      T in_place = a;
      in_place *= b;
      in_place -= c;
      const T results[] = {a,
                           b,
                           c,
                           a + b,
                           __hsub(a, b),
                           a * b,
                           a / b,
                           __hfma(a, b, c),
                           -a,
                           __habs(a),
                           __hmax(a, b),
                           __hmin(a, b),
                           in_place,
                           __low2float(product),
                           __high2float(product),
                           __high2float(fma),
                           __low2float(sum),
                           T(double(float(a)) * (1 + 0x1p-40))};
      for (const T result : results) *out++ = float(result);
      *out++ = (a < b) + 2 * (a <= b) + 4 * (a == b) + 8 * (a != b) + 16 * __hgt(a, b) + 32 * __hge(a, b);
    }
}

// Cases in which rounding by way of float32 would be wrong.
__global__ void narrow_ties(double* out) {
  const half h = 1.0f - 0x1p-10f;
  *out++ = __half2float(__hfma(__float2half(0.5f + 0x1p-11f), h, __float2half(1025.0f)));
  *out++ = __half2float(__double2half(1024.5 + 0x1p-40));
  *out++ =
      __bfloat162float(__hfma(__float2bfloat16(9.0f), __float2bfloat16(14.5f), __float2bfloat16(0x1p-30f)));
  *out++ =
      __bfloat162float(__hfma(__float2bfloat16(9.0f), __float2bfloat16(14.5f), __float2bfloat16(0x1p-60f)));
  *out++ = __bfloat162float(__double2bfloat16(130.5 + 0x1p-40));
  *out++ = __half2float(__float2half(65520.0f));
  *out++ = __half2float(__hmax(__ushort_as_half(0x7e00), __float2half(1.0f)));
  *out++ = __hisnan(__hadd(__ushort_as_half(0x7c00), __ushort_as_half(0xfc00)));
}

}  // namespace

int main(int argc, char** argv) {
  const std::map<std::string, void (*)(double*)> kernels = {
      {"atomics", atomics},
      {"bits", bits},
      {"approximations", approximations},
      {"vectors", vectors},
      {"half", narrow_operations<half>},
      {"bfloat16", narrow_operations<__nv_bfloat16>},
      {"narrow_ties", narrow_ties},
  };
  constexpr double kUnwritten = -12345;
  std::vector<double> out(1 << 16, kUnwritten);
  aigc::launch(kernels.at(argc > 1 ? argv[1] : ""), 1, 64, 0, nullptr, out.data());
  while (out.back() == kUnwritten) out.pop_back();
  for (const double x : out) std::printf("%.17g\n", x);
}
