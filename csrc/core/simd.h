// Fixed-width vectors for the CPU kernels.
//
// One source, several instruction sets: a kernel file is compiled once per set with -DAIGC_ISA=<name> and the
// set's flags, and the vector width follows the flags. Everything here lives in the inline namespace
// AIGC_ISA: were an inline function shared between two sets, the linker could pick its AVX-512 copy for a
// machine that has none.
//
// Vec<float> and Vec<double> are GNU vector types: + - * /, comparisons and ?: are built in, on x86, NEON and
// any other target. Half types are loaded into Vec<float> and rounded (to nearest even) when stored.
#pragma once

#include <type_traits>
#include <utility>

#include "core/numeric.h"

#ifndef AIGC_ISA
#error "compile kernel files with -DAIGC_ISA=<instruction set>"
#endif

#if defined(__AVX512F__)
#define AIGC_VECTOR_BYTES 64
#elif defined(__AVX2__)
#define AIGC_VECTOR_BYTES 32
#else
#define AIGC_VECTOR_BYTES 16
#endif

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace aigc {
inline namespace AIGC_ISA {

template <class T>
struct vector_types;
template <>
struct vector_types<float> {
  typedef float vec __attribute__((vector_size(AIGC_VECTOR_BYTES)));
  using mask = decltype(vec{} < vec{});
  typedef uint32_t bits __attribute__((vector_size(AIGC_VECTOR_BYTES)));
};
template <>
struct vector_types<double> {
  typedef double vec __attribute__((vector_size(AIGC_VECTOR_BYTES)));
  using mask = decltype(vec{} < vec{});
  typedef uint64_t bits __attribute__((vector_size(AIGC_VECTOR_BYTES)));
};

// T is a storage type; the vector holds acc_t<T>.
template <class T>
using Vec = typename vector_types<acc_t<T>>::vec;
// The result of a comparison: all bits of a lane are set, or none.
template <class T>
using Mask = typename vector_types<acc_t<T>>::mask;

template <class T>
constexpr int kWidth = AIGC_VECTOR_BYTES / sizeof(acc_t<T>);

// The scalar type of a vector; that of a scalar is itself.
template <class V>
struct element {
  using type = V;
};
template <>
struct element<vector_types<float>::vec> {
  using type = float;
};
template <>
struct element<vector_types<double>::vec> {
  using type = double;
};
template <class V>
using element_t = typename element<V>::type;

template <class V>
inline V broadcast(element_t<V> x) {
  return x - V{};  // not V{} + x: 0 + -0 is +0, -0 - 0 stays -0
}

template <class V>
inline V select(typename vector_types<element_t<V>>::mask m, V a, V b) {
  return m ? a : b;
}

// ---- float32 <-> 16-bit types, by vector ----------------------------------------------------------------

typedef uint16_t vec_u16 __attribute__((vector_size(AIGC_VECTOR_BYTES / 2)));

inline Vec<float> widen_bfloat16(vec_u16 x) {
  return (Vec<float>)(__builtin_convertvector(x, vector_types<float>::bits) << 16);
}

inline vec_u16 narrow_bfloat16(Vec<float> x) {
  using U = vector_types<float>::bits;
  const U u = (U)x;
  const U rounded = u + 0x7fffu + ((u >> 16) & 1u);
  const U quiet_nan = u | 0x400000u;  // rounding could carry a NaN's payload into infinity
  return __builtin_convertvector((x != x ? quiet_nan : rounded) >> 16, vec_u16);
}

#if defined(__AVX512F__)
inline Vec<float> widen_half(vec_u16 x) { return (Vec<float>)_mm512_cvtph_ps((__m256i)x); }
inline vec_u16 narrow_half(Vec<float> x) {
  return (vec_u16)_mm512_cvtps_ph((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
#elif defined(__AVX2__)
inline Vec<float> widen_half(vec_u16 x) { return (Vec<float>)_mm256_cvtph_ps((__m128i)x); }
inline vec_u16 narrow_half(Vec<float> x) {
  return (vec_u16)_mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
#elif defined(__aarch64__)
typedef __fp16 vec_fp16 __attribute__((vector_size(8)));
inline Vec<float> widen_half(vec_u16 x) { return __builtin_convertvector((vec_fp16)x, Vec<float>); }
inline vec_u16 narrow_half(Vec<float> x) { return (vec_u16) __builtin_convertvector(x, vec_fp16); }
#else
// No conversion instruction: scale by a power of two, so that the FPU's own rounding and denormals do the
// work.
inline Vec<float> widen_half(vec_u16 x) {
  using U = vector_types<float>::bits;
  const U u = __builtin_convertvector(x, U);
  const U magnitude = (u & 0x7fffu) << 13;
  const Vec<float> finite = (Vec<float>)magnitude * 0x1p112f;
  const U special = magnitude | 0x7f800000u;  // infinity and NaN keep their payload
  const U value = (u & 0x7c00u) == 0x7c00u ? special : (U)finite;
  return (Vec<float>)(value | ((u & 0x8000u) << 16));
}
inline vec_u16 narrow_half(Vec<float> x) {
  using U = vector_types<float>::bits;
  const U u = (U)x;
  const U magnitude = u & 0x7fffffffu;
  // Normal results: round at bit 13 in integers; results below 2^-14: an addition rounds at the denormals'
  // last place.
  const U normal = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  const U denormal = (U)((Vec<float>)magnitude + 0.5f) - 0x3f000000u;
  const U quiet_nan = 0x7e00u | ((magnitude >> 13) & 0x3ffu);
  U value = magnitude < (113u << 23) ? denormal : normal;
  value = magnitude >= 0x477ff000u ? U{} + 0x7c00u : value;  // 65520 and above
  value = magnitude > 0x7f800000u ? quiet_nan : value;
  return __builtin_convertvector(value | ((u >> 16) & 0x8000u), vec_u16);
}
#endif

// ---- load and store -------------------------------------------------------------------------------------

template <class V, class T>
inline V load_bytes(const T* p) {
  V v;
  std::memcpy(&v, p, sizeof(V));
  return v;
}

inline Vec<float> load(const float* p) { return load_bytes<Vec<float>>(p); }
inline Vec<double> load(const double* p) { return load_bytes<Vec<double>>(p); }
inline Vec<float> load(const half* p) { return widen_half(load_bytes<vec_u16>(p)); }
inline Vec<float> load(const bfloat16* p) { return widen_bfloat16(load_bytes<vec_u16>(p)); }

inline void store(float* p, Vec<float> v) { std::memcpy(p, &v, sizeof(v)); }
inline void store(double* p, Vec<double> v) { std::memcpy(p, &v, sizeof(v)); }
inline void store(half* p, Vec<float> v) {
  const vec_u16 u = narrow_half(v);
  std::memcpy(p, &u, sizeof(u));
}
inline void store(bfloat16* p, Vec<float> v) {
  const vec_u16 u = narrow_bfloat16(v);
  std::memcpy(p, &u, sizeof(u));
}

// The first n < kWidth<T> elements; the other lanes are zero. A tail goes through the same vector code as the
// rest, so that an element's bits do not depend on where it lies.
template <class T>
inline Vec<T> load(const T* p, int n) {
  T lanes[kWidth<T>] = {};
  for (int i = 0; i < n; ++i) lanes[i] = p[i];
  return load(lanes);
}

template <class T>
inline void store(T* p, Vec<T> v, int n) {
  T lanes[kWidth<T>];
  store(lanes, v);
  for (int i = 0; i < n; ++i) p[i] = lanes[i];
}

template <class T>
inline Vec<T> load_upto(const T* p, int64_t n) {
  return n >= kWidth<T> ? load(p) : load(p, static_cast<int>(n));
}

template <class T>
inline void store_upto(T* p, Vec<T> v, int64_t n) {
  if (n >= kWidth<T>)
    store(p, v);
  else
    store(p, v, static_cast<int>(n));
}

// The same, decided at compile time: std::true_type stands for a whole vector, that is n >= kWidth<T>, and
// std::false_type for a part of one. The compiler is told that it isn't empty, or it would treat that case on
// its own.
template <class T, class Whole>
inline Vec<T> load_lanes(const T* p, [[maybe_unused]] int64_t n, Whole) {
  if constexpr (Whole::value) return load(p);
  if (n < 1 || n >= kWidth<T>) __builtin_unreachable();
  return load(p, static_cast<int>(n));
}
template <class T, class Whole>
inline void store_lanes(T* p, Vec<T> v, [[maybe_unused]] int64_t n, Whole) {
  if constexpr (Whole::value) return store(p, v);
  if (n < 1 || n >= kWidth<T>) __builtin_unreachable();
  store(p, v, static_cast<int>(n));
}

// Calls f(i, whole) for each vector of [begin, end). The loop has no branch for the tail.
template <class T, class F>
inline void for_vectors(int64_t begin, int64_t end, F&& f) {
  int64_t i = begin;
  for (; i + kWidth<T> <= end; i += kWidth<T>) f(i, std::true_type());
  if (i < end) f(i, std::false_type());
}

// One element, through the same conversions.
template <class T>
inline acc_t<T> load_scalar(const T* p) {
  return load(p, 1)[0];
}
template <class T>
inline void store_scalar(T* p, acc_t<T> x) {
  store(p, broadcast<Vec<T>>(x), 1);
}

// A horizontal sum in a fixed order (pairwise halves).
template <class V>
inline element_t<V> horizontal_sum(V v) {
  constexpr int n = sizeof(V) / sizeof(element_t<V>);
  element_t<V> lanes[n];
  std::memcpy(lanes, &v, sizeof(v));
  for (int half_width = n / 2; half_width > 0; half_width /= 2)
    for (int i = 0; i < half_width; ++i) lanes[i] += lanes[i + half_width];
  return lanes[0];
}

// Calls f(i) for i from 0 to n - 1 as std::integral_constant.
template <int n, class F>
inline void unrolled(F&& f) {
  [&]<int... i>(std::integer_sequence<int, i...>) {
    (f(std::integral_constant<int, i>()), ...);
  }(std::make_integer_sequence<int, n>());
}

// ---- neighbouring lanes ---------------------------------------------------------------------------------

template <class V>
using LaneIndices = std::make_index_sequence<sizeof(V) / sizeof(element_t<V>)>;

// The even and the odd lanes of the sequence a, b.
template <class V>
inline void split_pairs(V a, V b, V& even, V& odd) {
  [&]<size_t... i>(std::index_sequence<i...>) {
    even = __builtin_shufflevector(a, b, (2 * i)...);
    odd = __builtin_shufflevector(a, b, (2 * i + 1)...);
  }(LaneIndices<V>());
}

// The inverse.
template <class V>
inline void join_pairs(V even, V odd, V& a, V& b) {
  [&]<size_t... i>(std::index_sequence<i...>) {
    constexpr size_t n = sizeof...(i);
    a = __builtin_shufflevector(even, odd, (i / 2 + i % 2 * n)...);
    b = __builtin_shufflevector(even, odd, (n / 2 + i / 2 + i % 2 * n)...);
  }(LaneIndices<V>());
}

// Of n vectors, a power of two: they become lane 0 of all of them, then lane 1 of all of them, and so on.
template <class V, int n>
inline void transpose(V (&a)[n]) {
  for (int step = 1; step < n; step *= 2) {
    V b[n];
    for (int i = 0; i < n / 2; ++i) join_pairs(a[i], a[i + n / 2], b[2 * i], b[2 * i + 1]);
    for (int i = 0; i < n; ++i) a[i] = b[i];
  }
}

// The vector at p + k, where a and b are those at p and p + kWidth. An unaligned load of 64 bytes spans two
// cache lines. It costs as much as joining the vector from two others, which uses other ports.
template <int k, class V>
inline V load_between([[maybe_unused]] V a, [[maybe_unused]] V b, [[maybe_unused]] const element_t<V>* p) {
  if constexpr (k == 0) return a;
#if defined(__AVX512F__)
  if constexpr (sizeof(element_t<V>) == 4 && k < 16) return (V)_mm512_alignr_epi32((__m512i)b, (__m512i)a, k);
  if constexpr (sizeof(element_t<V>) == 8 && k < 8) return (V)_mm512_alignr_epi64((__m512i)b, (__m512i)a, k);
#endif
  return load(p + k);
}

// ---- masks as bits --------------------------------------------------------------------------------------

// Bit i of the result is lane i of the mask.
inline uint32_t mask_to_bits(Mask<float> m) {
#if defined(__AVX512F__)
  return _mm512_cmplt_epi32_mask((__m512i)m, _mm512_setzero_si512());
#elif defined(__AVX2__)
  return static_cast<uint32_t>(_mm256_movemask_ps((__m256)m));
#elif defined(__SSE2__)
  return static_cast<uint32_t>(_mm_movemask_ps((__m128)m));
#else
  uint32_t bits = 0;
  for (int i = 0; i < kWidth<float>; ++i) bits |= static_cast<uint32_t>(m[i] & 1) << i;
  return bits;
#endif
}

inline uint32_t mask_to_bits(Mask<double> m) {
#if defined(__AVX512F__)
  return _mm512_cmplt_epi64_mask((__m512i)m, _mm512_setzero_si512());
#elif defined(__AVX2__)
  return static_cast<uint32_t>(_mm256_movemask_pd((__m256d)m));
#elif defined(__SSE2__)
  return static_cast<uint32_t>(_mm_movemask_pd((__m128d)m));
#else
  uint32_t bits = 0;
  for (int i = 0; i < kWidth<double>; ++i) bits |= static_cast<uint32_t>(m[i] & 1) << i;
  return bits;
#endif
}

template <class T>
inline Mask<T> bits_to_mask(uint32_t bits) {
  Mask<T> lane_bit;
  for (int i = 0; i < kWidth<T>; ++i) lane_bit[i] = 1 << i;
  return ((Mask<T>{} + static_cast<int32_t>(bits)) & lane_bit) != 0;
}

}  // namespace AIGC_ISA
}  // namespace aigc
