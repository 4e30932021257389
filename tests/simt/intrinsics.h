// Arithmetic that CUDA has and C++ does not. Where the hardware approximates, so do these functions, with
// about the same error: no test passes here only because exp is better.
#pragma once

#include <bit>
#include <cmath>
#include <concepts>
#include <cstdint>
#include <type_traits>

namespace simt {

// Rounds the result of an operation even if the compiler contracts a * b + c.
template <class T>
T rounded(T x) {
  volatile T kept = x;
  return kept;
}

template <class T>
concept Number = std::integral<T> || std::floating_point<T>;

}  // namespace simt

inline float __fadd_rn(float a, float b) { return simt::rounded(a + b); }
inline float __fsub_rn(float a, float b) { return simt::rounded(a - b); }
inline float __fmul_rn(float a, float b) { return simt::rounded(a * b); }
inline float __fdiv_rn(float a, float b) { return simt::rounded(a / b); }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __frcp_rn(float a) { return simt::rounded(1 / a); }
inline float __fsqrt_rn(float a) { return std::sqrt(a); }
inline float __frsqrt_rn(float a) { return float(1 / std::sqrt(double(a))); }
inline double __dadd_rn(double a, double b) { return simt::rounded(a + b); }
inline double __dsub_rn(double a, double b) { return simt::rounded(a - b); }
inline double __dmul_rn(double a, double b) { return simt::rounded(a * b); }
inline double __fma_rn(double a, double b, double c) { return std::fma(a, b, c); }
inline float rsqrtf(float a) { return simt::rounded(1 / std::sqrt(a)); }
inline double rsqrt(double a) { return simt::rounded(1 / std::sqrt(a)); }

// As documented: exp2 of a rounded product; an absolute error of 2^-22 of the logarithm near 1; zero for a
// large divisor.
inline float __expf(float a) { return std::exp2(simt::rounded(a * 1.4426950408889634f)); }
inline float __exp10f(float a) { return std::exp2(simt::rounded(a * 3.3219280948873623f)); }
inline float __log2f(float a) {
  const double log = std::log2(double(a));
  return float(a > 0.5f && a < 2 ? std::rint(log * 0x1p21) * 0x1p-21 : log);
}
inline float __logf(float a) { return simt::rounded(__log2f(a) * 0.6931471805599453f); }
inline float __powf(float a, float b) { return std::exp2(simt::rounded(b * __log2f(a))); }
inline float __fdividef(float a, float b) {
  return simt::rounded(a * (std::fabs(b) > 0x1p126f ? 0.0f : simt::rounded(1 / b)));
}

inline float __saturatef(float a) { return a > 0 ? (a < 1 ? a : 1.0f) : 0.0f; }  // of NaN: 0
inline float __int_as_float(int a) { return std::bit_cast<float>(a); }
inline int __float_as_int(float a) { return std::bit_cast<int>(a); }
inline float __uint_as_float(unsigned a) { return std::bit_cast<float>(a); }
inline unsigned __float_as_uint(float a) { return std::bit_cast<unsigned>(a); }
inline double __longlong_as_double(long long a) { return std::bit_cast<double>(a); }
inline long long __double_as_longlong(double a) { return std::bit_cast<long long>(a); }

inline int __popc(unsigned a) { return std::popcount(a); }
inline int __popcll(unsigned long long a) { return std::popcount(a); }
inline int __clz(int a) { return std::countl_zero(unsigned(a)); }
inline int __clzll(long long a) { return std::countl_zero(static_cast<unsigned long long>(a)); }
inline int __ffs(int a) { return a == 0 ? 0 : std::countr_zero(unsigned(a)) + 1; }
inline int __ffsll(long long a) {
  return a == 0 ? 0 : std::countr_zero(static_cast<unsigned long long>(a)) + 1;
}
inline unsigned __brev(unsigned a) {
  unsigned reversed = 0;
  for (int i = 0; i < 32; ++i) reversed |= (a >> i & 1) << (31 - i);
  return reversed;
}
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned(uint64_t(a) * b >> 32); }
inline int __mulhi(int a, int b) { return int(int64_t(a) * b >> 32); }

// If one number is NaN, the other one. CUDA has them for some mixtures of types as well.
template <simt::Number T>
T min(T a, T b) {
  if constexpr (std::floating_point<T>)
    return std::fmin(a, b);
  else
    return a < b ? a : b;
}
template <simt::Number T>
T max(T a, T b) {
  if constexpr (std::floating_point<T>)
    return std::fmax(a, b);
  else
    return a > b ? a : b;
}
