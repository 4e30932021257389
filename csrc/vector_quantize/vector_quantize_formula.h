// What the CPU's and CUDA's kernels agree on when scores are too near to each other to tell.
#pragma once

#include "core/math.h"
#include "vector_quantize/vector_quantize.h"

namespace aigc {
inline namespace AIGC_MATH_NAMESPACE {

// How far apart two scores must be to tell which code is nearer: twice the bound on a score's rounding, and a
// tenth for the roundings of the bound. Infinite, so that float64 decides, where a score may have overflowed.
template <class S>
AIGC_HOST_DEVICE S score_margin(S row_square, S most_negative_half_norm, int64_t depth) {
  constexpr bool wide = sizeof(S) == 8;
  constexpr double eps = wide ? 0x1p-52 : 0x1p-23, most = wide ? 0x1p1020 : 0x1p124;
  const double largest = ::sqrt(-2 * double(most_negative_half_norm));
  const double scale = ::sqrt(double(row_square)) * largest - double(most_negative_half_norm);
  return scale < most ? S(1.1 * double(depth + 4) * eps * scale) : S(__builtin_inf());
}

}  // namespace AIGC_MATH_NAMESPACE
}  // namespace aigc
