#pragma once

#include <torch/headeronly/util/Half.h>

#include "narrow_float.h"

namespace simt {
struct Float16 {
  static uint16_t narrow(float x) { return c10::detail::fp16_ieee_from_fp32_value(x); }
  static float widen(uint16_t bits) { return c10::detail::fp16_ieee_to_fp32_value(bits); }
};
}  // namespace simt

using __half = simt::NarrowFloat<simt::Float16>;
using __half2 = simt::NarrowPair<simt::Float16>;
using half = __half;
using half2 = __half2;

inline __half __ushort_as_half(uint16_t bits) { return std::bit_cast<__half>(bits); }
inline uint16_t __half_as_ushort(__half x) { return x.bits; }
inline float __half2float(__half x) { return x; }
inline __half __float2half(float x) { return x; }
inline __half __float2half_rn(float x) { return x; }
inline __half __double2half(double x) { return x; }

inline __half2 make_half2(__half x, __half y) { return {x, y}; }
inline __half2 __halves2half2(__half x, __half y) { return {x, y}; }
inline __half2 __half2half2(__half x) { return {x, x}; }
inline __half2 __float2half2_rn(float x) { return {x, x}; }
inline __half2 __floats2half2_rn(float x, float y) { return {x, y}; }
inline __half2 __float22half2_rn(float2 x) { return {x.x, x.y}; }
inline float2 __half22float2(__half2 x) { return {x.x, x.y}; }
inline __half __low2half(__half2 x) { return x.x; }
inline __half __high2half(__half2 x) { return x.y; }
