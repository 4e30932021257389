// Storage types, the type that arithmetic on them is done in, and arithmetic of sizes. No torch, no CUDA
// headers.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

// CPU kernels are compiled once per instruction set. The linker must never find two copies of one function
// there, or it could keep the AVX-512 copy for a machine without AVX-512. So the functions of core/ live in an
// inline namespace of the set, and the small functions in the headers of ops are always inlined.
#if defined(AIGC_ISA)
#define AIGC_MATH_NAMESPACE AIGC_ISA
#else
#define AIGC_MATH_NAMESPACE scalar
#endif
#define AIGC_INLINE [[gnu::always_inline]] constexpr

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

// Sums run in acc_t over this many additions and are then added up in float64, so that the error stays that
// of a short sum.
constexpr int kSumBlock = 64;

// Calls f with a null pointer of the storage type: f(static_cast<T*>(nullptr)).
template <class F>
constexpr void dispatch_dtype(DType dtype, F&& f) {
  switch (dtype) {
    case DType::float64:
      return f(static_cast<double*>(nullptr));
    case DType::float32:
      return f(static_cast<float*>(nullptr));
    case DType::float16:
      return f(static_cast<half*>(nullptr));
    case DType::bfloat16:
      return f(static_cast<bfloat16*>(nullptr));
  }
}

// The same with acc_t of the storage type.
template <class F>
constexpr void dispatch_acc(DType dtype, F&& f) {
  dtype == DType::float64 ? f(static_cast<double*>(nullptr)) : f(static_cast<float*>(nullptr));
}

// Calls f with the first entry of a table that fits, if any, as a std::integral_constant.
template <const auto& kTable, int i = 0, class Fits, class F>
constexpr void dispatch_first(const Fits& fits, F&& f) {
  using Entry = std::remove_cv_t<std::remove_reference_t<decltype(kTable[i])>>;
  if (fits(kTable[i])) return f(std::integral_constant<Entry, kTable[i]>());
  if constexpr (i + 1 < int(sizeof(kTable) / sizeof(Entry))) dispatch_first<kTable, i + 1>(fits, f);
}

// ---- sizes ----------------------------------------------------------------------------------------------

inline namespace AIGC_MATH_NAMESPACE {

// For integers only: those of floating-point numbers (core/math.h) differ in NaN.
template <class A, class B>
using if_integers =
    std::enable_if_t<std::is_integral_v<A> && std::is_integral_v<B>, std::common_type_t<A, B>>;

template <class A, class B>
constexpr if_integers<A, B> min(A a, B b) {
  return a < b ? a : b;
}
template <class A, class B>
constexpr if_integers<A, B> max(A a, B b) {
  return a > b ? a : b;
}

// a / b rounded down and up, b > 0; a may be negative.
constexpr int64_t floor_div(int64_t a, int64_t b) { return a / b - (a % b < 0 ? 1 : 0); }
constexpr int64_t ceil_div(int64_t a, int64_t b) { return a / b + (a % b > 0 ? 1 : 0); }
constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

struct Range {
  int64_t begin, end;
  constexpr int64_t size() const { return end - begin; }
};

// The part with this index of [0, count), which is cut into parts of `size`. Of a part beyond it, the end does
// not come after the beginning.
constexpr Range part_of(int64_t count, int64_t size, int64_t index) {
  const int64_t begin = index * size;
  return {begin, min(begin + size, count)};
}

}  // namespace AIGC_MATH_NAMESPACE
}  // namespace aigc
