// The sums of pixel_norm and its derivatives and how the results are made of them, for CPU vectors and CUDA
// scalars.
#pragma once

#include "core/math.h"
#include "pixel_norm/pixel_norm.h"

namespace aigc {
inline namespace AIGC_MATH_NAMESPACE {

// By the order of differentiation. The inputs are x, dy and u.
template <int kOrder>
struct PixelNormFormula {
  static constexpr int kInputs = kOrder + 1;
  static constexpr int kSums = kOrder == 0 ? 1 : kOrder == 1 ? 2 : 4;

  // Calls f(s, a, b) for each sum s, which is that of a * b over the channels.
  template <class V, class F>
  static AIGC_HOST_DEVICE void products(const V (&input)[kInputs], F&& f) {
    f(0, input[0], input[0]);
    if constexpr (kOrder >= 1) f(1, input[0], input[1]);
    if constexpr (kOrder == 2) {
      f(2, input[0], input[2]);
      f(3, input[1], input[2]);
    }
  }

  // The factors of the inputs in the result.
  template <class S>
  static AIGC_HOST_DEVICE void factors(const PixelNormParams& p, const double (&sum)[kSums],
                                       S (&factor)[kInputs]) {
    const double channels = double(p.channels);
    const double r = 1 / ::sqrt(sum[0] / channels + p.eps);
    if constexpr (kOrder == 0) {
      factor[0] = S(r);
    } else {
      const double cubed = r * r * r / channels;
      if constexpr (kOrder == 1) {
        factor[0] = S(-cubed * sum[1]);
        factor[1] = S(r);
      } else {
        factor[0] = S(-cubed * (sum[3] - 3 * r * r / channels * sum[1] * sum[2]));
        factor[1] = S(-cubed * sum[2]);
        factor[2] = S(-cubed * sum[1]);
      }
    }
  }

  template <class F, class V>
  static AIGC_HOST_DEVICE V result(const F (&factor)[kInputs], const V (&input)[kInputs]) {
    V y = factor[0] * input[0];
    for (int k = 1; k < kInputs; ++k) y += factor[k] * input[k];
    return y;
  }
};

}  // namespace AIGC_MATH_NAMESPACE
}  // namespace aigc
