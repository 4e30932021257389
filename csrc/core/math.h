// exp, expm1, log, log1p, tanh, sigmoid, softplus and what belongs to them, under the same names for
//   - Vec<float> and Vec<double> (where AIGC_ISA is defined): branch-free polynomials, below;
//   - float and double, on the host and in CUDA device code: the C and CUDA libraries' own,
// so that one functor template serves every backend.
//
// NaN gives NaN; limits at +-infinity are exact; results overflow to infinity and underflow through the
// denormals; odd functions and those that fix 0 keep its sign. Largest errors in ULP of the vector functions,
// as tests/native/ checks them, with and without FMA (the compiler may contract a product and a sum, nothing
// here depends on it):
//
//             exp  expm1  log  log1p  tanh  sigmoid  softplus
//   float     2    2      2    2      2     2        2
//   double    4    4      4    4      4     4        4
//
// Needs IEEE arithmetic: -ffast-math would remove the roundings that the code relies on.
#pragma once

#include <math.h>  // the C functions: an inline std::exp(float) could be merged across instruction sets

#include <limits>
#include <type_traits>

#include "core/numeric.h"

#if defined(AIGC_ISA)
#include "core/simd.h"
#define AIGC_MATH_NAMESPACE AIGC_ISA
#else
#define AIGC_MATH_NAMESPACE scalar
#endif

#if defined(__CUDACC__)
#define AIGC_HOST_DEVICE __host__ __device__
#else
#define AIGC_HOST_DEVICE
#endif

namespace aigc {
inline namespace AIGC_MATH_NAMESPACE {

// ---- scalars
// -----------------------------------------------------------------------------------------------------

AIGC_HOST_DEVICE inline float exp(float x) { return ::expf(x); }
AIGC_HOST_DEVICE inline double exp(double x) { return ::exp(x); }
AIGC_HOST_DEVICE inline float expm1(float x) { return ::expm1f(x); }
AIGC_HOST_DEVICE inline double expm1(double x) { return ::expm1(x); }
AIGC_HOST_DEVICE inline float log(float x) { return ::logf(x); }
AIGC_HOST_DEVICE inline double log(double x) { return ::log(x); }
AIGC_HOST_DEVICE inline float log1p(float x) { return ::log1pf(x); }
AIGC_HOST_DEVICE inline double log1p(double x) { return ::log1p(x); }
AIGC_HOST_DEVICE inline float tanh(float x) { return ::tanhf(x); }
AIGC_HOST_DEVICE inline double tanh(double x) { return ::tanh(x); }
AIGC_HOST_DEVICE inline float sqrt(float x) { return ::sqrtf(x); }
AIGC_HOST_DEVICE inline double sqrt(double x) { return ::sqrt(x); }
AIGC_HOST_DEVICE inline float abs(float x) { return ::fabsf(x); }
AIGC_HOST_DEVICE inline double abs(double x) { return ::fabs(x); }

AIGC_HOST_DEVICE inline float select(bool condition, float a, float b) { return condition ? a : b; }
AIGC_HOST_DEVICE inline double select(bool condition, double a, double b) { return condition ? a : b; }

template <class V>
AIGC_HOST_DEVICE inline std::enable_if_t<std::is_floating_point_v<V>, V> broadcast(V x) {
  return x;
}

// ---- vectors
// -----------------------------------------------------------------------------------------------------

#if defined(AIGC_ISA)

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
  static constexpr float kInteger = 0x1p23f, kIntegerBias = 256;
  static constexpr float kShift =
      0x1.8p23f + 127;  // x + kShift is rounded to an integer, with the bias added
  static constexpr float kLn2High = 0x1.62e4p-1f, kLn2Low = 0x1.7f7d1cp-20f;
  static constexpr float kExpZero = -105, kExpInfinity = 89;  // exp is 0 below, infinity above
  static constexpr float kExpm1Limit = -18;                   // expm1 is -1 below
  static constexpr float kTanhLimit = 10;                     // tanh is 1 above
  static constexpr float kExpm1[] = {0x1.000000p-1f, 0x1.5554acp-3f, 0x1.5554f0p-5f, 0x1.122a20p-7f,
                                     0x1.6d438cp-10f};
  static constexpr float kLog[] = {0x1.55557cp-1f, 0x1.995d44p-2f, 0x1.320564p-2f};
  static constexpr float kTanh[] = {-0x1.55554ap-2f, 0x1.110d00p-3f, -0x1.b9235cp-5f, 0x1.5918e6p-6f,
                                    -0x1.9a7bccp-8f};
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
  static constexpr double kExpm1Limit = -38;
  static constexpr double kTanhLimit = 20;
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
};

// sum c[i] x^i
template <int i = 0, class V, class T, int n>
inline V polynomial(V x, const T (&c)[n]) {
  if constexpr (i == n - 1)
    return broadcast<V>(c[i]);
  else
    return polynomial<i + 1>(x, c) * x + c[i];
}

template <class V, class T = element_t<V>>
inline V abs(V x) {
  return (V)((bits_t<V>)x & ~math_constants<T>::kSign);
}

// magnitude >= 0 with the sign of x
template <class V, class T = element_t<V>>
inline V with_sign(V magnitude, V x) {
  return (V)((bits_t<V>)magnitude | ((bits_t<V>)x & math_constants<T>::kSign));
}

inline Vec<float> sqrt(Vec<float> x) {
#if defined(__AVX512F__)
  return (Vec<float>)_mm512_sqrt_ps((__m512)x);
#elif defined(__AVX2__)
  return (Vec<float>)_mm256_sqrt_ps((__m256)x);
#elif defined(__SSE2__)
  return (Vec<float>)_mm_sqrt_ps((__m128)x);
#else
  for (int i = 0; i < kWidth<float>; ++i) x[i] = __builtin_sqrtf(x[i]);
  return x;
#endif
}

inline Vec<double> sqrt(Vec<double> x) {
#if defined(__AVX512F__)
  return (Vec<double>)_mm512_sqrt_pd((__m512d)x);
#elif defined(__AVX2__)
  return (Vec<double>)_mm256_sqrt_pd((__m256d)x);
#elif defined(__SSE2__)
  return (Vec<double>)_mm_sqrt_pd((__m128d)x);
#else
  for (int i = 0; i < kWidth<double>; ++i) x[i] = __builtin_sqrt(x[i]);
  return x;
#endif
}

// e^x = 2^n (1 + p), p = e^r - 1 with |r| <= ln(2)/2. `shifted` is n + kShift: its low bits are n + the
// exponent's bias.
template <class V>
struct ReducedExp {
  V shifted;
  V p;
};

template <class V, class T = element_t<V>>
inline ReducedExp<V> reduce_exp(V x) {
  using K = math_constants<T>;
  const V shifted = x * static_cast<T>(1.4426950408889634) + K::kShift;
  const V n = shifted - K::kShift;
  const V r = (x - n * K::kLn2High) - n * K::kLn2Low;  // n * kLn2High is exact
  return {shifted, r + r * r * polynomial(r, K::kExpm1)};
}

// 2^n from n + kShift, for n in the range of normal numbers.
template <class V, class T = element_t<V>>
inline V exp2_shifted(V shifted) {
  return (V)((bits_t<V>)shifted << math_constants<T>::kMantissaBits);
}

// exp for x <= kExpInfinity
template <class V, class T = element_t<V>>
inline V exp_below_infinity(V x) {
  using K = math_constants<T>;
  x = select(x < K::kExpZero, broadcast<V>(K::kExpZero), x);
  const ReducedExp<V> e = reduce_exp(x);
  // 2^n itself may be out of range: 2^(n/2) 2^(n - n/2), of which only the last product rounds.
  const V half_shifted = (e.shifted - K::kShift) * T(0.5) + K::kShift;
  const V rest_shifted = e.shifted - (half_shifted - K::kShift);
  return (e.p + T(1)) * exp2_shifted(half_shifted) * exp2_shifted(rest_shifted);
}

template <class V, class T = element_t<V>>
inline V exp(V x) {
  using K = math_constants<T>;
  return exp_below_infinity(select(x > K::kExpInfinity, broadcast<V>(K::kExpInfinity), x));
}

template <class V, class T = element_t<V>>
inline V expm1(V x) {
  using K = math_constants<T>;
  V y = select(x < K::kExpm1Limit, broadcast<V>(K::kExpm1Limit), x);
  y = select(y > K::kExpInfinity, broadcast<V>(K::kExpInfinity), y);
  const ReducedExp<V> e = reduce_exp(y);
  const V half_scale = exp2_shifted(e.shifted - T(1));  // 2^n would overflow before the result does
  const V result = (half_scale * e.p + (half_scale - T(0.5))) * T(2);
  return select(abs(x) < std::numeric_limits<T>::epsilon() / 4, x, result);  // -0 and denormals
}

// The bits of 2^n less those of 1, where x 2^-n lies in [sqrt(1/2), sqrt(2)); x > 0 and normal.
template <class V, class T = element_t<V>>
inline bits_t<V> exponent_bits(V x) {
  return ((bits_t<V>)x - math_constants<T>::kSqrtHalf) &
         (math_constants<T>::kSign | math_constants<T>::kExponent);
}

// log(2^n (1 + f)) from n as exponent_bits gives it and f in [sqrt(1/2) - 1, sqrt(2) - 1]:
// log(1 + f) = f - (f^2/2 - s (f^2/2 + R)) with s = f / (2 + f), R = 2 atanh(s) / s - 2, as in fdlibm.
template <class V, class T = element_t<V>>
inline V log_reduced(bits_t<V> n_bits, V f, V minus_n_offset = V{}) {
  using K = math_constants<T>;
  // The low bits of kInteger hold n + kIntegerBias >= 0. Minus n times minus ln(2), because n = 0 must add -0
  // for log1p(-0) to be -0.
  const V integer = (V)(((n_bits ^ K::kSign) >> K::kMantissaBits) | (bits_t<V>)broadcast<V>(K::kInteger));
  const V minus_n = (K::kInteger + K::kIntegerBias - integer) + minus_n_offset;
  const V s = f / (f + T(2));
  const V z = s * s;
  const V half_square = f * f * T(0.5);
  const V correction = half_square - s * (half_square + z * polynomial(z, K::kLog));
  return (f - (correction - minus_n * -K::kLn2Low)) + minus_n * -K::kLn2High;
}

template <class V, class T = element_t<V>>
inline V log(V x) {
  using K = math_constants<T>;
  const auto denormal = x < std::numeric_limits<T>::min();
  const V normal = select(denormal, x * K::kInteger, x);
  const bits_t<V> n_bits = exponent_bits(normal);
  const V mantissa = (V)((bits_t<V>)normal - n_bits);
  const V result =
      log_reduced(n_bits, mantissa - T(1), select(denormal, broadcast<V>(K::kMantissaBits), V{}));
  constexpr T infinity = std::numeric_limits<T>::infinity();
  const V out_of_domain =
      select(x == V{}, broadcast<V>(-infinity), broadcast<V>(std::numeric_limits<T>::quiet_NaN()));
  return select(x <= V{}, out_of_domain, select(x < infinity, result, x));
}

// log1p for 0 > x > -1 and finite x >= 0
template <class V, class T = element_t<V>>
inline V log1p_finite(V x) {
  const bits_t<V> n_bits = exponent_bits(x + T(1));
  // f = 2^-n (1 + x) - 1 = 2^-n x - (1 - 2^-n): only the last sum rounds. 2^-n could be a denormal, 2^(2-n)
  // is not.
  const V scaled = (V)((bits_t<V>)x - n_bits);
  const V four_scaled = (V)((bits_t<V>)broadcast<V>(T(4)) - n_bits);
  return log_reduced(n_bits, scaled - (T(1) - four_scaled * T(0.25)));
}

template <class V, class T = element_t<V>>
inline V log1p(V x) {
  constexpr T infinity = std::numeric_limits<T>::infinity();
  const V out_of_domain =
      select(x == T(-1), broadcast<V>(-infinity), broadcast<V>(std::numeric_limits<T>::quiet_NaN()));
  return select(x <= T(-1), out_of_domain, select(x < infinity, log1p_finite(x), x));
}

template <class V, class T = element_t<V>>
inline V tanh(V x) {
  using K = math_constants<T>;
  const V magnitude = abs(x);
  const V z = magnitude * magnitude;
  const V small = magnitude + magnitude * z * polynomial(z, K::kTanh);
  // 1 - 2 / (e^(2|x|) + 1), where the subtraction does not cancel
  const V limited = select(magnitude > K::kTanhLimit, broadcast<V>(K::kTanhLimit), magnitude);
  const ReducedExp<V> e = reduce_exp(limited + limited);
  const V scale = exp2_shifted(e.shifted);
  const V large = T(1) - T(2) / (scale * e.p + scale + T(1));
  return with_sign(select(magnitude < T(0.55), small, large), x);
}

#endif  // AIGC_ISA

// ---- both
// --------------------------------------------------------------------------------------------------------

template <class V>
AIGC_HOST_DEVICE inline V rsqrt(V x) {
  return broadcast<V>(1) / sqrt(x);
}

// NaN if either is, unlike fmax and maxps.
template <class V>
AIGC_HOST_DEVICE inline V max(V a, V b) {
  return select((a > b) | (a != a), a, b);
}

template <class V>
AIGC_HOST_DEVICE inline V min(V a, V b) {
  return select((a < b) | (a != a), a, b);
}

// 1 / (1 + e^-x), with full relative accuracy down to the denormals
template <class V>
AIGC_HOST_DEVICE inline V sigmoid(V x) {
  const V one = broadcast<V>(1);
  const V e = exp(-abs(x));
  return select(x < V{}, e, one) / (one + e);
}

// log(1 + e^x), with full relative accuracy down to the denormals
template <class V>
AIGC_HOST_DEVICE inline V softplus(V x) {
  return max(x, V{}) + log1p(exp(-abs(x)));
}

}  // namespace AIGC_MATH_NAMESPACE
}  // namespace aigc
