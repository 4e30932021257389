// __half and __nv_bfloat16, and pairs of them: one template for both, since their functions have the same
// names. Every operation is computed precisely enough for its result to be that of a single rounding.
#pragma once

#include <bit>
#include <cmath>
#include <concepts>
#include <cstdint>
#include <limits>

#include "cuda_runtime.h"

namespace simt {

// x + error if that is a float, else the neighbouring float whose last bit is odd (|error| is at most half a
// unit of x). Rounding it to a type with at least two bits less gives the same as rounding x + error.
inline float round_to_odd(double x, double error = 0) {
  const float f = float(x);
  if (!std::isfinite(f)) return f;
  const double rest = (x - f) + error;
  if (rest == 0 || (std::bit_cast<uint32_t>(f) & 1)) return f;
  return std::nextafter(
      f, rest > 0 ? std::numeric_limits<float>::infinity() : -std::numeric_limits<float>::infinity());
}

// a * b + c. The product of two narrow numbers is exact in float64.
inline float fma_to_odd(double a, double b, double c) {
  const double product = a * b, sum = product + c;
  const double added = sum - product;
  const double error = (product - (sum - added)) + (c - added);
  return round_to_odd(sum, error);
}

// `Format` has `uint16_t narrow(float)`, which rounds to nearest even, and `float widen(uint16_t)`.
template <class Format>
struct NarrowFloat {
  uint16_t bits;

  NarrowFloat() = default;
  NarrowFloat(float x) : bits(Format::narrow(x)) {}
  NarrowFloat(double x) : bits(Format::narrow(round_to_odd(x))) {}
  NarrowFloat(std::integral auto x) : NarrowFloat(double(x)) {}
  operator float() const { return Format::widen(bits); }
};

template <class Format>
struct alignas(4) NarrowPair {
  NarrowFloat<Format> x, y;
};

}  // namespace simt

// float32 has more than twice as many bits as either type, plus two: a sum, product or quotient that is
// rounded to float32 and then once more is the same as one that is rounded once.
#define SIMT_NARROW_BINARY(name, name2, expression)                           \
  template <class F>                                                          \
  simt::NarrowFloat<F> name(simt::NarrowFloat<F> x, simt::NarrowFloat<F> y) { \
    const float a = x, b = y;                                                 \
    return expression;                                                        \
  }                                                                           \
  template <class F>                                                          \
  simt::NarrowPair<F> name2(simt::NarrowPair<F> x, simt::NarrowPair<F> y) {   \
    return {name(x.x, y.x), name(x.y, y.y)};                                  \
  }
SIMT_NARROW_BINARY(__hadd, __hadd2, a + b)
SIMT_NARROW_BINARY(__hsub, __hsub2, a - b)
SIMT_NARROW_BINARY(__hmul, __hmul2, (a * b))
SIMT_NARROW_BINARY(__hdiv, __h2div, a / b)
SIMT_NARROW_BINARY(__hadd_rn, __hadd2_rn, a + b)
SIMT_NARROW_BINARY(__hsub_rn, __hsub2_rn, a - b)
SIMT_NARROW_BINARY(__hmul_rn, __hmul2_rn, (a * b))
// If one number is NaN, the other one; -0 < 0.
SIMT_NARROW_BINARY(__hmin, __hmin2, a == b && std::signbit(a) ? a : std::fmin(b, a))
SIMT_NARROW_BINARY(__hmax, __hmax2, a == b && std::signbit(a) ? b : std::fmax(a, b))
SIMT_NARROW_BINARY(operator+, operator+, a + b)
SIMT_NARROW_BINARY(operator-, operator-, a - b)
SIMT_NARROW_BINARY(operator*, operator*, (a * b))
SIMT_NARROW_BINARY(operator/, operator/, a / b)
#undef SIMT_NARROW_BINARY

#define SIMT_NARROW_UNARY(name, name2, expression)    \
  template <class F>                                  \
  simt::NarrowFloat<F> name(simt::NarrowFloat<F> x) { \
    const float a = x;                                \
    return expression;                                \
  }                                                   \
  template <class F>                                  \
  simt::NarrowPair<F> name2(simt::NarrowPair<F> x) {  \
    return {name(x.x), name(x.y)};                    \
  }
SIMT_NARROW_UNARY(__hneg, __hneg2, -a)
SIMT_NARROW_UNARY(__habs, __habs2, std::fabs(a))
SIMT_NARROW_UNARY(operator-, operator-, -a)
SIMT_NARROW_UNARY(operator+, operator+, a)
#undef SIMT_NARROW_UNARY

// For pairs, the results are 1 and 0.
#define SIMT_NARROW_COMPARE(name, name2, compare)                           \
  template <class F>                                                        \
  bool name(simt::NarrowFloat<F> x, simt::NarrowFloat<F> y) {               \
    return float(x) compare float(y);                                       \
  }                                                                         \
  template <class F>                                                        \
  bool operator compare(simt::NarrowFloat<F> x, simt::NarrowFloat<F> y) {   \
    return float(x) compare float(y);                                       \
  }                                                                         \
  template <class F>                                                        \
  simt::NarrowPair<F> name2(simt::NarrowPair<F> x, simt::NarrowPair<F> y) { \
    return {float(name(x.x, y.x)), float(name(x.y, y.y))};                  \
  }
SIMT_NARROW_COMPARE(__heq, __heq2, ==)
SIMT_NARROW_COMPARE(__hne, __hne2, !=)
SIMT_NARROW_COMPARE(__hlt, __hlt2, <)
SIMT_NARROW_COMPARE(__hle, __hle2, <=)
SIMT_NARROW_COMPARE(__hgt, __hgt2, >)
SIMT_NARROW_COMPARE(__hge, __hge2, >=)
#undef SIMT_NARROW_COMPARE

#define SIMT_NARROW_ASSIGN(name, op)                                            \
  template <class F>                                                            \
  simt::NarrowFloat<F>& name(simt::NarrowFloat<F>& x, simt::NarrowFloat<F> y) { \
    return x = x op y;                                                          \
  }                                                                             \
  template <class F>                                                            \
  simt::NarrowPair<F>& name(simt::NarrowPair<F>& x, simt::NarrowPair<F> y) {    \
    return x = x op y;                                                          \
  }
SIMT_NARROW_ASSIGN(operator+=, +)
SIMT_NARROW_ASSIGN(operator-=, -)
SIMT_NARROW_ASSIGN(operator*=, *)
SIMT_NARROW_ASSIGN(operator/=, /)
#undef SIMT_NARROW_ASSIGN

template <class F>
bool __hisnan(simt::NarrowFloat<F> x) {
  return std::isnan(float(x));
}
template <class F>
simt::NarrowFloat<F> __hfma(simt::NarrowFloat<F> a, simt::NarrowFloat<F> b, simt::NarrowFloat<F> c) {
  return simt::fma_to_odd(float(a), float(b), float(c));
}
template <class F>
simt::NarrowPair<F> __hfma2(simt::NarrowPair<F> a, simt::NarrowPair<F> b, simt::NarrowPair<F> c) {
  return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)};
}
template <class F>
float __low2float(simt::NarrowPair<F> x) {
  return x.x;
}
template <class F>
float __high2float(simt::NarrowPair<F> x) {
  return x.y;
}
