// y = x * r, r = 1 / sqrt(mean(x^2) + eps), the mean over the C channels of a pixel.
//
// Derivatives, with <a, b> the sum of a*b over the channels. First order:
//     dx = r*dy - x * r^3/C <x,dy>
// Second order, with u the cotangent of dx. As a map of dy, dx is symmetric, so d(dy) is the same function:
//     d(dy) = r*u - x * r^3/C <x,u>
//     d(x)  = -r^3/C (<x,dy>*u + <x,u>*dy + (<dy,u> - 3r^2/C <x,dy><x,u>) * x)
// Each is a linear combination of x, dy and u whose factors depend on the pixel's sums.
//
// Traffic (e = element size): 2e, 3e, 4e.
#pragma once

#include "core/isa.h"
#include "core/numeric.h"

namespace aigc {

struct PixelNormParams {
  DType dtype = DType::float32;
  int64_t outer = 0, channels = 0, inner = 0;  // element = (outer * channels + channel) * inner + i
  double eps = 0;
  const void* x = nullptr;
  const void* dy = nullptr;
  const void* u = nullptr;
  void* y = nullptr;
};

// An item of the kernels: this many pixels where pixels are adjacent (NCHW), one pixel where its channels are
// (NHWC, NC).
constexpr int64_t kPixelTile = 128;
AIGC_INLINE int64_t pixel_items(const PixelNormParams& p) {
  return p.outer * (p.inner == 1 ? 1 : ceil_div(p.inner, kPixelTile));
}

}  // namespace aigc

AIGC_KERNEL(pixel_norm_forward, PixelNormParams)          // y = y
AIGC_KERNEL(pixel_norm_backward, PixelNormParams)         // y = dx
AIGC_KERNEL(pixel_norm_double_backward, PixelNormParams)  // y = d(x)
