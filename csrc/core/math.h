// exp, expm1, log, log1p, sin, cos, tanh, sigmoid, softplus, sqrt, rsqrt, abs, min, max and clamp, under one
// name for
//   - Vec<float> and Vec<double> (where AIGC_ISA is defined): branch-free polynomials, below; sin and cos of
//     large numbers are the C library's, number by number;
//   - float and double, on the host and in CUDA device code: the C and CUDA libraries' own,
// so that one functor template serves every backend.
//
// NaN gives NaN (min and max: if either is); limits at +-infinity are exact; results overflow to infinity and
// underflow through the denormals; functions that fix 0 keep its sign. Largest errors of the vector functions
// in ULP, float and double, checked by tests/native/:
//
//   exp 1.1, expm1 1.75, log 1, log1p 1.5, sin 1.5, cos 1.5, tanh 1.5, sigmoid 1.85, softplus 1.7,
//   sqrt 0.5, rsqrt 1.5
//
// The compiler may contract a product and a sum or not: nothing depends on it. It must not reorder
// (-ffast-math).
#pragma once

#include <math.h>  // the C functions: an inline std::exp(float) could be merged across instruction sets

#include <limits>
#include <type_traits>

#include "core/numeric.h"

#if defined(AIGC_ISA)
#include "core/simd.h"
#endif

#if defined(__CUDACC__)
#define AIGC_HOST_DEVICE __host__ __device__
#else
#define AIGC_HOST_DEVICE
#endif

namespace aigc {
inline namespace AIGC_MATH_NAMESPACE {

// ---- scalars --------------------------------------------------------------------------------------------

AIGC_HOST_DEVICE inline float exp(float x) { return ::expf(x); }
AIGC_HOST_DEVICE inline double exp(double x) { return ::exp(x); }
AIGC_HOST_DEVICE inline float expm1(float x) { return ::expm1f(x); }
AIGC_HOST_DEVICE inline double expm1(double x) { return ::expm1(x); }
AIGC_HOST_DEVICE inline float log(float x) { return ::logf(x); }
AIGC_HOST_DEVICE inline double log(double x) { return ::log(x); }
AIGC_HOST_DEVICE inline float log1p(float x) { return ::log1pf(x); }
AIGC_HOST_DEVICE inline double log1p(double x) { return ::log1p(x); }
AIGC_HOST_DEVICE inline float sin(float x) { return ::sinf(x); }
AIGC_HOST_DEVICE inline double sin(double x) { return ::sin(x); }
AIGC_HOST_DEVICE inline float cos(float x) { return ::cosf(x); }
AIGC_HOST_DEVICE inline double cos(double x) { return ::cos(x); }
AIGC_HOST_DEVICE inline float tanh(float x) { return ::tanhf(x); }
AIGC_HOST_DEVICE inline double tanh(double x) { return ::tanh(x); }
AIGC_HOST_DEVICE inline float sqrt(float x) { return ::sqrtf(x); }
AIGC_HOST_DEVICE inline double sqrt(double x) { return ::sqrt(x); }
AIGC_HOST_DEVICE inline float abs(float x) { return ::fabsf(x); }
AIGC_HOST_DEVICE inline double abs(double x) { return ::fabs(x); }

AIGC_HOST_DEVICE inline float select(bool condition, float a, float b) { return condition ? a : b; }
AIGC_HOST_DEVICE inline double select(bool condition, double a, double b) { return condition ? a : b; }

// The templates below are for float and double only; those for vectors are further down.
template <class T>
using if_scalar = std::enable_if_t<std::is_floating_point_v<T>, T>;

#if !defined(AIGC_ISA)  // else simd.h has them for both
template <class T>
using element_t = T;

template <class T>
AIGC_HOST_DEVICE inline if_scalar<T> broadcast(T x) {
  return x;
}
#endif

// Both at once, for one reduction of the argument.
#if defined(__CUDA_ARCH__)
__device__ inline void sincos(float x, float& sine, float& cosine) { ::sincosf(x, &sine, &cosine); }
__device__ inline void sincos(double x, double& sine, double& cosine) { ::sincos(x, &sine, &cosine); }
#else
template <class T>
inline std::enable_if_t<std::is_floating_point_v<T>> sincos(T x, T& sine, T& cosine) {
  sine = sin(x);
  cosine = cos(x);
}
#endif

template <class T>
AIGC_HOST_DEVICE inline if_scalar<T> rsqrt(T x) {
  return T(1) / sqrt(x);
}

template <class T>
AIGC_HOST_DEVICE inline if_scalar<T> max(T a, T b) {
  return a > b || a != a ? a : b;
}

template <class T>
AIGC_HOST_DEVICE inline if_scalar<T> min(T a, T b) {
  return a < b || a != a ? a : b;
}

template <class T>
AIGC_HOST_DEVICE inline if_scalar<T> clamp(T x, T low, T high) {
  return x < low ? low : x > high ? high : x;
}

template <class T>
AIGC_HOST_DEVICE inline if_scalar<T> sigmoid(T x) {
  const T e = exp(-abs(x));
  return (x < 0 ? e : T(1)) / (T(1) + e);
}

template <class T>
AIGC_HOST_DEVICE inline if_scalar<T> softplus(T x) {
  return (x > 0 ? x : T(0)) + log1p(exp(-abs(x)));
}

// ---- vectors --------------------------------------------------------------------------------------------

#if defined(AIGC_ISA)

// Ill-formed for scalars, so that the templates below do not accept them.
template <class V>
using vector_element_t = std::enable_if_t<!std::is_arithmetic_v<V>, element_t<V>>;
template <class V>
using bits_t = typename vector_types<element_t<V>>::bits;

// Coefficients: tests/native/fit_math.py.
template <class T>
struct math_constants;

template <>
struct math_constants<float> {
  static constexpr int kMantissaBits = 23;
  static constexpr uint32_t kSign = 0x80000000u;
  static constexpr uint32_t kExponent = 0x7f800000u;
  static constexpr uint32_t kSqrtHalf = 0x3f3504f3u;
  // Floats from kInteger to 2 kInteger are the integers there; kIntegerBias makes an exponent positive.
  static constexpr float kInteger = 0x1p23f, kIntegerBias = 256;
  // x + kShift rounds x to an integer; the low bits of the sum are that integer plus the exponent's bias.
  static constexpr float kShift = 0x1.8p23f + 127;
  // kLn2High times an exponent is exact.
  static constexpr float kLn2High = 0x1.62e4p-1f, kLn2Low = 0x1.7f7d1cp-20f;
  static constexpr float kExpZero = -105, kExpInfinity = 89;  // exp is 0 below, infinity above
  static constexpr float kExpNegligible = 18;                 // 1 + exp(-x) is 1 above
  static constexpr float kSigmoidShift = 32, kSigmoidUnit = 0x1p-32f;
  static constexpr float kExpm1[] = {0x1.000000p-1f, 0x1.5554acp-3f, 0x1.5554f0p-5f, 0x1.122a20p-7f,
                                     0x1.6d438cp-10f};
  static constexpr float kLog[] = {0x1.55557cp-1f, 0x1.995d44p-2f, 0x1.320564p-2f};
  static constexpr float kTanh[] = {-0x1.55554ap-2f, 0x1.110d00p-3f, -0x1.b9235cp-5f, 0x1.5918e6p-6f,
                                    -0x1.9a7bccp-8f};
  static constexpr float kRound = 0x1.8p23f;    // x + kRound rounds x to an integer, which the low bits are
  static constexpr float kReducible = 0x1p17f;  // above, reduce_quarter loses digits
  static constexpr float kSin[] = {-0x1.555544p-3f, 0x1.1106b0p-7f, -0x1.99100cp-13f};
  static constexpr float kCos[] = {0x1.555548p-5f, -0x1.6c0b08p-10f, 0x1.999a46p-16f};
};

template <>
struct math_constants<double> {
  static constexpr int kMantissaBits = 52;
  static constexpr uint64_t kSign = 0x8000000000000000u;
  static constexpr uint64_t kExponent = 0x7ff0000000000000u;
  static constexpr uint64_t kSqrtHalf = 0x3fe6a09e667f3bcdu;
  static constexpr double kInteger = 0x1p52, kIntegerBias = 2048;
  static constexpr double kShift = 0x1.8p52 + 1023;
  static constexpr double kLn2High = 0x1.62e42fefa3p-1, kLn2Low = 0x1.3de6af278ece6p-42;
  static constexpr double kExpZero = -746, kExpInfinity = 710;
  static constexpr double kExpNegligible = 38;
  static constexpr double kSigmoidShift = 64, kSigmoidUnit = 0x1p-64;
  static constexpr double kExpm1[] = {0x1.0000000000005p-1,  0x1.5555555555559p-3,  0x1.55555555520cfp-5,
                                      0x1.111111110f642p-7,  0x1.6c16c17f45f2bp-10, 0x1.a01a01b00fcc5p-13,
                                      0x1.a019a64fd2b6cp-16, 0x1.71ddf7e787cabp-19, 0x1.28a2e92066c6bp-22,
                                      0x1.af5f7e056c165p-26};
  static constexpr double kLog[] = {0x1.5555555555595p-1, 0x1.999999997f1b0p-2, 0x1.249249428d962p-2,
                                    0x1.c71c51900ef42p-3, 0x1.7466572ea15f4p-3, 0x1.399f4f767d634p-3,
                                    0x1.2f1db2c574a16p-3};
  static constexpr double kTanh[] = {-0x1.555555555554fp-2,  0x1.111111111079bp-3,  -0x1.ba1ba1b97da3ap-5,
                                     0x1.664f485980bb6p-6,   -0x1.226e2f175799cp-7, 0x1.d6d29c1fb36cep-9,
                                     -0x1.7d8fdb476cc39p-10, 0x1.3483f135adf40p-11, -0x1.e97289681d8dcp-13,
                                     0x1.5d7c816893372p-14,  -0x1.472592f201266p-16};
  static constexpr double kRound = 0x1.8p52;
  static constexpr double kReducible = 0x1p20;
  static constexpr double kSin[] = {-0x1.5555555555545p-3, 0x1.111111110f28ap-7,   -0x1.a01a019b52d9ep-13,
                                    0x1.71de34d13b6b0p-19, -0x1.ae5de30186187p-26, 0x1.5d6cbb42b3ffdp-33};
  static constexpr double kCos[] = {0x1.5555555555548p-5,   -0x1.6c16c16c149cfp-10, 0x1.a01a019bf5029p-16,
                                    -0x1.27e4f7830faa9p-22, 0x1.1ee990e41df1ap-29,  -0x1.8f7fba8a77e06p-37};
};
// pi/2, in three parts. Up to kReducible, a multiple of each of the first two is exact.
constexpr double kHalfPi[] = {0x1.921fb544p+0, 0x1.0b4611a6p-34, 0x1.3198a2e037073p-69};

// sum c[i] x^i
template <int i = 0, class V, class T, int n>
inline V polynomial(V x, const T (&c)[n]) {
  if constexpr (i == n - 1)
    return broadcast<V>(c[i]);
  else
    return polynomial<i + 1>(x, c) * x + c[i];
}

template <class V, class T = vector_element_t<V>>
inline V abs(V x) {
  return (V)((bits_t<V>)x & ~math_constants<T>::kSign);
}

// magnitude >= 0 with the sign of x
template <class V, class T = vector_element_t<V>>
inline V with_sign(V magnitude, V x) {
  return (V)((bits_t<V>)magnitude | ((bits_t<V>)x & math_constants<T>::kSign));
}

// raw_max(a, b) is a > b ? a : b, hence b if either is NaN. GCC does not use x86's instruction for that.
#if defined(__AVX512F__)
#define AIGC_X86(op) _mm512_##op
#elif defined(__AVX2__)
#define AIGC_X86(op) _mm256_##op
#elif defined(__SSE2__)
#define AIGC_X86(op) _mm_##op
#endif

#if defined(AIGC_X86)
inline Vec<float> sqrt(Vec<float> x) { return AIGC_X86(sqrt_ps)(x); }
inline Vec<double> sqrt(Vec<double> x) { return AIGC_X86(sqrt_pd)(x); }
inline Vec<float> raw_max(Vec<float> a, Vec<float> b) { return AIGC_X86(max_ps)(a, b); }
inline Vec<double> raw_max(Vec<double> a, Vec<double> b) { return AIGC_X86(max_pd)(a, b); }
inline Vec<float> raw_min(Vec<float> a, Vec<float> b) { return AIGC_X86(min_ps)(a, b); }
inline Vec<double> raw_min(Vec<double> a, Vec<double> b) { return AIGC_X86(min_pd)(a, b); }
#undef AIGC_X86
#else
template <class V, class T = vector_element_t<V>>
inline V sqrt(V x) {
  for (int i = 0; i < kWidth<T>; ++i) x[i] = sqrt(x[i]);
  return x;
}
template <class V, class T = vector_element_t<V>>
inline V raw_max(V a, V b) {
  return select(a > b, a, b);
}
template <class V, class T = vector_element_t<V>>
inline V raw_min(V a, V b) {
  return select(a < b, a, b);
}
#endif

template <class V, class T = vector_element_t<V>>
inline V rsqrt(V x) {
  return T(1) / sqrt(x);
}

template <class V, class T = vector_element_t<V>>
inline V max(V a, V b) {
  return select(a != a, a, raw_max(a, b));
}

template <class V, class T = vector_element_t<V>>
inline V min(V a, V b) {
  return select(a != a, a, raw_min(a, b));
}

// x between low and high, which are not NaN; x may be.
template <class V, class T = vector_element_t<V>>
inline V clamp(V x, V low, V high) {
  return raw_min(high, raw_max(low, x));
}

template <class V, class T = vector_element_t<V>>
inline V clamp(V x, T low, T high) {
  return clamp(x, broadcast<V>(low), broadcast<V>(high));
}

// e^x = 2^n (1 + r + tail) with |r| <= ln(2)/2 and r + tail = e^r - 1; `shifted` is n + kShift.
template <class V>
struct ReducedExp {
  V shifted;
  V r;
  V tail;
};

// kExpZero <= x <= kExpInfinity
template <class V, class T = vector_element_t<V>>
inline ReducedExp<V> reduce_exp(V x) {
  using K = math_constants<T>;
  const V shifted = x * T(1.4426950408889634) + K::kShift;
  const V n = shifted - K::kShift;
  const V r = (x - n * K::kLn2High) - n * K::kLn2Low;
  return {shifted, r, r * r * polynomial(r, K::kExpm1)};
}

// 2^n from n + kShift, if it is a normal number.
template <class V, class T = vector_element_t<V>>
inline V exp2_shifted(V shifted) {
  return (V)((bits_t<V>)shifted << math_constants<T>::kMantissaBits);
}

// 2^n as a product, because 2^n itself may be out of range. Multiplying by one factor after the other rounds
// only once. Where n is -1 or 0, `first` is 2^n.
template <class V>
struct SplitExp2 {
  V first;
  V second;
};

template <class V, class T = vector_element_t<V>>
inline SplitExp2<V> split_exp2(V shifted) {
  using K = math_constants<T>;
  const V half_shifted = (shifted - K::kShift) * T(0.5) + K::kShift;  // -1/2 + bias rounds to -1 + bias: even
  return {exp2_shifted(half_shifted), exp2_shifted(shifted - (half_shifted - K::kShift))};
}

template <class V, class T = vector_element_t<V>>
inline V exp(V x) {
  using K = math_constants<T>;
  const ReducedExp<V> e = reduce_exp(clamp(x, K::kExpZero, K::kExpInfinity));
  const SplitExp2<V> scale = split_exp2(e.shifted);
  return (e.r + e.tail + T(1)) * scale.first * scale.second;
}

template <class V, class T = vector_element_t<V>>
inline V expm1(V x) {
  using K = math_constants<T>;
  const ReducedExp<V> e = reduce_exp(clamp(x, -K::kExpNegligible, K::kExpInfinity));
  // 2 (2^(n-1) e^r - 1/2), since 2^n overflows before the result does. The tail comes last: the sum of the
  // large terms is often exact.
  const V half_scale = exp2_shifted(e.shifted - T(1));
  const V result = (half_scale * e.tail + (half_scale * e.r + (half_scale - T(0.5)))) * T(2);
  return select(abs(x) < std::numeric_limits<T>::epsilon() / 4, x, result);  // -0 and denormals
}

// 1 / (1 + e^-x), with full relative accuracy down to the denormals.
template <class V, class T = vector_element_t<V>>
inline V sigmoid(V x) {
  using K = math_constants<T>;
  const ReducedExp<V> e = reduce_exp(-clamp(x, K::kExpZero, K::kExpNegligible));
  // unit / (unit + unit e^-x), since e^-x overflows before the result underflows
  const V unit = broadcast<V>(K::kSigmoidUnit);
  const V scale = exp2_shifted(e.shifted - K::kSigmoidShift);
  const V sum = scale + unit;
  const V lost = unit - (sum - scale);  // what the sum rounded off
  return unit / (sum + (scale * (e.r + e.tail) + lost));
}

// The bits of 2^n less those of 1, where x 2^-n lies in [sqrt(1/2), sqrt(2)); x > 0 and normal.
template <class V, class T = vector_element_t<V>>
inline bits_t<V> exponent_bits(V x) {
  return ((bits_t<V>)x - math_constants<T>::kSqrtHalf) &
         (math_constants<T>::kSign | math_constants<T>::kExponent);
}

// -n from exponent_bits
template <class V, class T = vector_element_t<V>>
inline V minus_exponent(bits_t<V> bits) {
  using K = math_constants<T>;
  // The low bits of a float near 2^kMantissaBits are an integer: n + kIntegerBias >= 0.
  const bits_t<V> biased = (bits ^ K::kSign) >> K::kMantissaBits;
  return (K::kInteger + K::kIntegerBias) - (V)(biased | (bits_t<V>)broadcast<V>(K::kInteger));
}

// log(2^n (1 + f + f_low)) for 1 + f in [sqrt(1/2), sqrt(2)], as in fdlibm:
// log(1 + f) = f - (f^2/2 - s (f^2/2 + R)) with s = f / (2 + f), R = 2 atanh(s) / s - 2.
// It adds (-n) * (-ln 2) instead of n * ln 2, because n = 0 must add -0 for log1p(-0) to be -0.
template <class V, class T = vector_element_t<V>>
inline V log_reduced(V minus_n, V f, V f_low = V{}) {
  using K = math_constants<T>;
  const V s = f / (f + T(2));
  const V z = s * s;
  const V half_square = f * f * T(0.5);
  const V correction = (half_square - f_low) - s * (half_square + z * polynomial(z, K::kLog));
  return (f - (correction - minus_n * -K::kLn2Low)) + minus_n * -K::kLn2High;
}

template <class V, class T = vector_element_t<V>>
inline V log(V x) {
  using K = math_constants<T>;
  constexpr T infinity = std::numeric_limits<T>::infinity();
  const auto denormal = x < std::numeric_limits<T>::min();
  const V normal = select(denormal, x * K::kInteger, x);
  const bits_t<V> n_bits = exponent_bits(normal);
  const V mantissa = (V)((bits_t<V>)normal - n_bits);
  const V minus_n = minus_exponent<V>(n_bits) + select(denormal, broadcast<V>(K::kMantissaBits), V{});
  const V result = log_reduced(minus_n, mantissa - T(1));
  const V out_of_domain =
      select(x == V{}, broadcast<V>(-infinity), broadcast<V>(std::numeric_limits<T>::quiet_NaN()));
  return select(x <= V{}, out_of_domain, select(x < infinity, result, x));
}

template <class V, class T = vector_element_t<V>>
inline V log1p(V x) {
  constexpr T infinity = std::numeric_limits<T>::infinity();
  const bits_t<V> n_bits = exponent_bits(x + T(1));
  // f = 2^-n (1 + x) - 1 = 2^-n x - (1 - 2^-n) rounds once. 2^-n may be a denormal, 2^(2-n) is not.
  const V scaled = (V)((bits_t<V>)x - n_bits);
  const V four_scaled = (V)((bits_t<V>)broadcast<V>(T(4)) - n_bits);
  const V result = log_reduced(minus_exponent<V>(n_bits), scaled - (T(1) - four_scaled * T(0.25)));
  const V out_of_domain =
      select(x == T(-1), broadcast<V>(-infinity), broadcast<V>(std::numeric_limits<T>::quiet_NaN()));
  return select(x <= T(-1), out_of_domain, select(x < infinity, result, x));
}

// log(1 + e^x), with full relative accuracy down to the denormals.
template <class V, class T = vector_element_t<V>>
inline V softplus(V x) {
  using K = math_constants<T>;
  // max(x, 0) + log(1 + y), y = e^-|x|. Up to 1 + y = sqrt(2): n = 0, f = y; above: n = 1, f = (y - 1) / 2.
  const V minus_magnitude = raw_max(broadcast<V>(K::kExpZero), -abs(x));
  const auto above = minus_magnitude > T(-0.881373587019543);
  const V n = select(above, broadcast<V>(1), V{});
  const ReducedExp<V> e = reduce_exp(minus_magnitude);
  const SplitExp2<V> scale = split_exp2(e.shifted);  // where n = 1, `first` is all of it
  const V high = scale.first * e.r + (scale.first - n);
  const V tail = scale.first * e.tail;
  const V sum = high + tail;
  const V lost = tail - (sum - high);
  const V factor = select(above, broadcast<V>(0.5), scale.second);
  return raw_max(V{}, x) + log_reduced(-n, sum * factor, lost * factor);
}

template <class V, class T = vector_element_t<V>>
inline V tanh(V x) {
  using K = math_constants<T>;
  const V magnitude = abs(x);
  const V z = magnitude * magnitude;
  const V small = magnitude + magnitude * z * polynomial(z, K::kTanh);
  // 1 - 2 / (e^(2|x|) + 1), where the subtraction does not cancel
  const V limited = raw_min(broadcast<V>(K::kExpNegligible), magnitude);
  const ReducedExp<V> e = reduce_exp(limited + limited);
  const V scale = exp2_shifted(e.shifted);
  const V large = T(1) - T(2) / (scale * (e.r + e.tail) + (scale + T(1)));
  return with_sign(select(magnitude < T(0.55), small, large), x);
}

// x = n pi/2 + r + r_low with |r| <= pi/4 (a little more where n is rounded the wrong way); `bits` are those
// of n. |x| <= kReducible.
template <class V>
struct ReducedQuarter {
  bits_t<V> bits;
  V r;
  V r_low;
};

inline ReducedQuarter<Vec<float>> reduce_quarter(Vec<float> x) {
  using K = math_constants<float>;
  typedef double wide __attribute__((vector_size(2 * AIGC_VECTOR_BYTES)));
  const Vec<float> shifted = x * 0.636619772f + K::kRound;
  const wide n = __builtin_convertvector(shifted - K::kRound, wide);
  const wide r = (__builtin_convertvector(x, wide) - n * kHalfPi[0]) - n * kHalfPi[1];
  return {(bits_t<Vec<float>>)shifted, __builtin_convertvector(r, Vec<float>), Vec<float>{}};
}

inline ReducedQuarter<Vec<double>> reduce_quarter(Vec<double> x) {
  using K = math_constants<double>;
  using V = Vec<double>;
  const V shifted = x * 0.63661977236758134 + K::kRound;
  const V n = shifted - K::kRound;
  const V a = x - n * kHalfPi[0], b = n * kHalfPi[1];  // both exact
  const V difference = a - b;
  const V lost_b = (a - difference) - b;  // what the difference rounded off, where a is the larger one
  const V lost_a = a - (difference + b);  // where b is
  const V low = select(abs(a) < abs(b), lost_a, lost_b) - n * kHalfPi[2];
  const V r = difference + low;
  return {(bits_t<V>)shifted, r, (difference - r) + low};
}

template <class V, class T = vector_element_t<V>>
inline void sincos(V x, V& sine, V& cosine) {
  using K = math_constants<T>;
  constexpr int kSignBit = sizeof(T) * 8 - 1;
  const auto reducible = abs(x) <= K::kReducible;
  const ReducedQuarter<V> q = reduce_quarter(select(reducible, x, V{}));
  // of r + r_low, as in fdlibm
  const V z = q.r * q.r, half_square = z * T(0.5), most = T(1) - half_square;
  const V s = q.r + (q.r * z * polynomial(z, K::kSin) + q.r_low * most);
  const V c = most + (((T(1) - most) - half_square) + (z * z * polynomial(z, K::kCos) - q.r * q.r_low));
  const auto odd = (q.bits & 1) != 0;
  const bits_t<V> sine_sign = (q.bits & 2) << (kSignBit - 1);
  const bits_t<V> cosine_sign = ((q.bits + 1) & 2) << (kSignBit - 1);
  sine = (V)((bits_t<V>)select(odd, c, s) ^ sine_sign);
  cosine = (V)((bits_t<V>)select(odd, s, c) ^ cosine_sign);
  sine = select(abs(x) < std::numeric_limits<T>::epsilon() / 4, x, sine);  // -0 and denormals
  if (mask_to_bits(~reducible) != 0)
    for (int i = 0; i < kWidth<T>; ++i)
      if (!reducible[i]) sine[i] = sin(x[i]), cosine[i] = cos(x[i]);  // NaN too
}

template <class V, class T = vector_element_t<V>>
inline V sin(V x) {
  V sine, cosine;
  sincos(x, sine, cosine);
  return sine;
}

template <class V, class T = vector_element_t<V>>
inline V cos(V x) {
  V sine, cosine;
  sincos(x, sine, cosine);
  return cosine;
}

#endif  // AIGC_ISA

}  // namespace AIGC_MATH_NAMESPACE
}  // namespace aigc
